"""Prompts of similar length become padded batches, as large as memory allows.

`n` is the number of rows of a batch and `W` its padded width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

from trl_step.core import free_device_cache, is_out_of_memory
from trl_step.models.probes import BatchMates

Answer = TypeVar("Answer")
"""What is known of one row after its batch."""


def run_batches(
    sample: Callable[[list[int]], list[Answer]],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    token_budget: int,
    may_shrink: bool = True,
    mates: BatchMates = BatchMates.ANY,
) -> list[Answer]:
    """`sample(rows)` for batches of rows of similar length; `sizes` are (prompt tokens, new tokens) of each row.

    The longest come first, so that a lack of memory shows at once. A batch that does not fit is halved, and later
    batches have no more rows than that half. `mates` are the prompts that may share a batch.
    """
    waiting = sorted(range(len(sizes)), key=lambda i: sizes[i], reverse=True)
    answers: dict[int, Answer] = {}
    most_rows = len(waiting)
    while waiting:
        count = min(most_rows, _rows_that_fit([sizes[i] for i in waiting], batch_size, token_budget, mates))
        rows = waiting[:count]
        try:
            answers.update(zip(rows, sample(rows), strict=True))
        except (RuntimeError, MemoryError) as error:
            if count == 1 or not may_shrink or not is_out_of_memory(error):
                raise
            most_rows = count // 2
        else:
            waiting = waiting[count:]
            continue
        free_device_cache()  # outside the except clause, in which the error's frames still hold the batch
    return [answers[i] for i in range(len(sizes))]


def _rows_that_fit(
    sizes: Sequence[tuple[int, int]], batch_size: int, token_budget: int, mates: BatchMates = BatchMates.ANY
) -> int:
    """How many of the waiting rows (longest prompt first) go into the next batch."""
    width = sizes[0][0]
    new_tokens = 0
    for count, (length, limit) in enumerate(sizes):
        if (count and mates is BatchMates.NONE) or (length < width and mates is not BatchMates.ANY):
            return count
        new_tokens = max(new_tokens, limit)
        if count >= batch_size and (width + new_tokens) * (count + 1) > token_budget:
            return count
    return len(sizes)


class Batch(NamedTuple):
    input_ids: torch.Tensor  # [n, W] int64
    attention_mask: torch.Tensor  # [n, W] int64
    starts: list[int]  # start of each row in the generated sequences
    prompt_width: int  # number of columns of the generated sequences that the model did not write


class Frame(NamedTuple):
    """Pad rows to a batch: on the left for decoder-only models, on the right for encoders."""

    pad_token_id: int
    is_encoder_decoder: bool
    device: torch.device
    multiple: int | None

    def pad(self, rows: Sequence[torch.Tensor]) -> Batch:
        width = max(len(row) for row in rows)
        if self.multiple:
            width = -(-width // self.multiple) * self.multiple
        ids = torch.full((len(rows), width), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            span = slice(0, len(row)) if self.is_encoder_decoder else slice(width - len(row), width)
            ids[i, span] = row.to(ids)
            mask[i, span] = 1
        if self.is_encoder_decoder:  # the output holds the decoder's tokens: a start token, then the answer
            starts, prompt_width = [0] * len(rows), 1
        else:
            starts, prompt_width = [width - len(row) for row in rows], width
        return Batch(ids.to(self.device), mask.to(self.device), starts, prompt_width)
