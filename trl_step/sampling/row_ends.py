"""Where each row of a batch ends, and how likely its tokens were: what is seen of `generate` token by token."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn
from transformers import StoppingCriteria

Criterion = Callable[..., Any]
"""Called with `input_ids` [n, W] and `scores`; returns a bool, or bools [n], that say "stop"."""
LEAST_ROWS = 4
"""A batch of fewer rows is not made smaller."""
LOOK_EVERY = 8
"""New tokens between two looks at how many rows have ended: on a GPU each look waits for it."""


class BatchCriterion(StoppingCriteria):
    """A criterion with state: `start_batch` is called before the rows of a new batch.

    It knows its rows by their tokens: rows may leave the batch between two calls.
    """

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
        eos_ids: end tokens, which the model's `generate` sees to by itself; here they count for `may_pause`.
        may_pause: all rows stop for the moment once half of them have ended, so that those can leave the batch.
        logprobs: records the log-probs of the tokens.

    Attributes:
        rows: int64 [n], the numbers of the rows that are still in the batch.
        stopped: int64 [rows], the new tokens of a row when one of `criteria` first said stop; the largest int64 if
            none did.
        over: bool [n], which of the rows in the batch have ended.
    """

    def __init__(
        self,
        limits: Sequence[int] | None,
        rows: int,
        prompt_width: int,
        criteria: Sequence[Criterion],
        device: torch.device,
        eos_ids: Collection[int] = (),
        may_pause: bool = False,
        logprobs: TokenLogprobs | None = None,
    ) -> None:
        self.criteria = criteria
        self.prompt_width = prompt_width
        self.limits = None if limits is None else torch.tensor(limits, device=device)
        self.stopped = torch.full((rows,), torch.iinfo(torch.long).max, device=device)
        self.rows = torch.arange(rows, device=device)
        self.over = torch.zeros(rows, dtype=torch.bool, device=device)
        self.may_pause = may_pause
        self._eos = torch.tensor(sorted(eos_ids), device=device)
        self._logprobs = logprobs
        for criterion in criteria:
            if isinstance(criterion, BatchCriterion):
                criterion.start_batch()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self._logprobs is not None:
            self._logprobs.see(input_ids, self.rows)
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            done = done | torch.as_tensor(criterion(input_ids, scores, **kwargs), device=done.device)
        if len(done) != len(self.rows):
            return done
        new_tokens = input_ids.shape[1] - self.prompt_width
        self.stopped[self.rows] = torch.where(
            done, self.stopped[self.rows].clamp(max=new_tokens), self.stopped[self.rows]
        )
        if self.limits is not None:
            done = done | (self.limits[self.rows] <= new_tokens)
        if not self.may_pause:
            return done
        self.over |= done | torch.isin(input_ids[:, -1], self._eos)
        if new_tokens % LOOK_EVERY == 0 and len(self.rows) >= LEAST_ROWS and 2 * int(self.over.sum()) >= len(self.rows):
            return torch.ones_like(done)
        return done

    @property
    def acts(self) -> bool:
        """Whether `generate` has to ask: end tokens and one limit for all rows need nobody."""
        ragged = self.limits is not None and int(self.limits.min()) < int(self.limits.max())
        return bool(self.criteria) or ragged or self.may_pause or self._logprobs is not None

    def leave(self) -> torch.Tensor:
        """Let the rows that have ended leave the batch; returns the places int64 of the others in the batch so far."""
        places = (~self.over).nonzero().squeeze(1)
        self.rows, self.over = self.rows[places], self.over[places]
        return places


class TokenLogprobs:
    """Log-probs of the tokens that `generate` chooses, from the logits that it has anyway.

    Use it as a forward hook of the model that makes the logits.

    Args:
        rows: rows of the batch, `n`.
        temperature: of sampling; the logits are divided by it. Nothing else that rules tokens out counts.
    """

    def __init__(self, rows: int, temperature: float) -> None:
        self._temperature = temperature
        self._logits: torch.Tensor | None = None
        self._rows = rows
        self._columns: list[torch.Tensor] = []

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._logits = output.logits[:, -1]

    def see(self, input_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """`input_ids` [m, W] end with the tokens just chosen, of the `rows` int64 [m] of the batch."""
        assert self._logits is not None, "the model made no logits"
        logprobs = torch.log_softmax(self._logits.float() / self._temperature, dim=-1)
        column = logprobs.new_zeros(self._rows)
        column[rows] = logprobs.gather(1, input_ids[:, -1:]).squeeze(1)
        self._columns.append(column)

    def table(self) -> torch.Tensor:
        """Float32 [n, R], one column for each new token, 0 for rows that had left the batch."""
        return torch.stack(self._columns, dim=1)
