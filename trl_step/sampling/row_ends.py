"""Where each row of a batch ends: its own limit, and the caller's stopping criteria."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

Criterion = Callable[..., Any]
"""Called with `input_ids` [n, W] and `scores`; returns a bool, or bools [n], that say "stop"."""


class BatchCriterion(StoppingCriteria):
    """A criterion with state: `generate_batched` calls `start_batch` before the rows of a new batch."""

    @abstractmethod
    def start_batch(self) -> None:
        """Forget the rows seen so far."""


class RowEnds(StoppingCriteria):
    """Ends each row at its own limit, asks the caller's criteria, and remembers where they ended a row.

    It does not apply to beam search, whose rows are not the batch's rows.

    Args:
        limits: new tokens allowed for each row, or None.
        rows: rows of the batch, `n`.
        prompt_width: number of columns before the first new token.
        criteria: the caller's stopping criteria.
        device: that of the batch.

    Attributes:
        stopped: int64 [n], the new tokens of a row when one of `criteria` first said stop; the largest int64 if
            none did.
    """

    def __init__(
        self,
        limits: Sequence[int] | None,
        rows: int,
        prompt_width: int,
        criteria: Sequence[Criterion],
        device: torch.device,
    ) -> None:
        self.criteria = criteria
        self.prompt_width = prompt_width
        self.limits = None if limits is None else torch.tensor(limits, device=device)
        self.stopped = torch.full((rows,), torch.iinfo(torch.long).max, device=device)
        for criterion in criteria:
            if isinstance(criterion, BatchCriterion):
                criterion.start_batch()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            done = done | torch.as_tensor(criterion(input_ids, scores, **kwargs), device=done.device)
        if len(done) != len(self.stopped):
            return done
        new_tokens = input_ids.shape[1] - self.prompt_width
        self.stopped = torch.where(done, self.stopped.clamp(max=new_tokens), self.stopped)
        return done if self.limits is None else done | (self.limits <= new_tokens)
