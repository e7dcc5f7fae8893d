"""How many samples go through the model together, and what happens when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from trl_step.core import free_device_cache, is_out_of_memory
from trl_step.models.notices import warn_user
from trl_step.trainer.batches.sharing import PassSize

Result = TypeVar("Result")


class MemoryBudget:
    """Cuts mini-batches for the forward pass; their numbers do not depend on the cut.

    Args:
        token_budget: most tokens of one forward pass, with padding, and a shared query once; None leaves mini-batches
            whole
    """

    def __init__(self, token_budget: int | None = None) -> None:
        self.token_budget = token_budget
        self.most_samples: int | None = None
        """set once memory ran out"""
        self.one_length = False
        """whether only samples of one length may go together: the number of columns changes what the model says"""

    def state_dict(self) -> dict[str, int | None]:
        """What memory has allowed; the budget is a setting."""
        return {"most_samples": self.most_samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.most_samples = state["most_samples"]

    def split(self, lengths: Sequence[int], repeated: Sequence[int] | None = None) -> list[np.ndarray]:
        """Cut samples of these lengths, in their order, into parts that fit; a sample by itself always fits.

        Args:
            repeated: how many tokens of each sample the one before has run; None: of none
        """
        parts: list[list[int]] = []
        size = PassSize()
        for i, (length, again) in enumerate(zip(lengths, repeated or [0] * len(lengths), strict=True)):
            size = size.plus(length, again)
            too_many = self.most_samples is not None and size.samples > self.most_samples
            too_long = self.token_budget is not None and size.tokens > self.token_budget
            other_length = self.one_length and i > 0 and length != lengths[i - 1]
            if not parts or too_many or too_long or other_length:
                parts.append([])
                size = PassSize().plus(length, again)
            parts[-1].append(i)
        return [np.array(part, dtype=np.int64) for part in parts]

    def split_alike(
        self, lengths: Sequence[int], reduce_max: Callable[[int], int], repeated: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """`split` into as many parts as the process with the most of them has; the last ones may be empty."""
        parts = self.split(lengths, repeated)
        missing = reduce_max(len(parts)) - len(parts)
        return parts + [np.zeros(0, dtype=np.int64) for _ in range(missing)]

    def run(
        self,
        lengths: Sequence[int],
        work: Callable[[list[np.ndarray]], Result],
        repeated: Sequence[int] | None = None,
    ) -> Result:
        """`work(parts)`; when memory runs out, `work` again with half as many samples together.

        `work` must have no side effects on failure. The first failure warns; with a single sample the error is raised.
        """
        while True:
            parts = self.split(lengths, repeated)
            largest = max(len(part) for part in parts)
            try:
                return work(parts)
            except (RuntimeError, MemoryError) as error:
                if largest == 1 or not is_out_of_memory(error):
                    raise
                if self.most_samples is None:
                    warn_user(
                        f"out of memory in a forward pass of {largest} samples: from now on {largest // 2} at a time, "
                        "with the same gradients. Set mini_batch_size or forward_tokens to avoid the first failure"
                    )
                self.most_samples = largest // 2
            free_device_cache()  # after the except clause: inside, the error's frames still hold the tensors
