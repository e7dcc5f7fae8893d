"""Ragged sequences to one padded batch, and numbers of response tokens to their positions in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Padded(NamedTuple):
    """`input_ids` and `attention_mask`, both [B, S] int64."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def pad_sequences(
    sequences: Sequence[torch.Tensor], padding_value: int, side: str = "right", length: int | None = None
) -> Padded:
    """Sequences of token ids, each [S_i], as one batch.

    Args:
        side: "right" or "left", where the padding goes
        length: pad to this many positions; None: to the longest sequence

    Raises:
        ValueError: a sequence is longer than `length` (its index is named).
    """
    lengths = [len(sequence) for sequence in sequences]
    size = max(lengths) if length is None else length
    if max(lengths) > size:
        i = lengths.index(max(lengths))
        raise ValueError(f"sample {i} is {lengths[i]} tokens long, more than the fixed length {size}; raise it")
    input_ids = sequences[0].new_full((len(sequences), size), padding_value, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for i, sequence in enumerate(sequences):
        columns = slice(0, lengths[i]) if side == "right" else slice(size - lengths[i], size)
        input_ids[i, columns] = sequence
        attention_mask[i, columns] = 1
    return Padded(input_ids, attention_mask)


def padding_on_the_right(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Padded:
    """The same rows with all padding after their tokens: both [B, S] -> both [B, S]."""
    order = torch.argsort(attention_mask, dim=1, descending=True, stable=True)
    return Padded(input_ids.gather(1, order), attention_mask.gather(1, order))


def counted_positions(
    attention_mask: torch.Tensor,
    skipped: Sequence[int],
    counted: Sequence[int],
    response_masks: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Mask of the positions that predict a response token: [B, T = S - 1] int64.

    Args:
        attention_mask: [B, S]; the padding may be on either side.
        skipped: predicted positions to leave out at the start of each sample (query length - 1 for a causal model).
        counted: number of positions after them.
        response_masks: what to write there instead of ones, each [counted_i].
    """
    device = attention_mask.device
    first = attention_mask.argmax(dim=1)
    begin = first + torch.as_tensor(skipped, device=device)
    end = begin + torch.as_tensor(counted, device=device)
    positions = torch.arange(attention_mask.shape[1] - 1, device=device)
    mask = ((positions >= begin.unsqueeze(1)) & (positions < end.unsqueeze(1))).long()
    if response_masks is not None:
        mask[mask.bool()] = torch.cat([m.to(device).long() for m in response_masks])
    return mask


def spread(values: Sequence[torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
    """The numbers of each sample at the positions where its row of `positions` [B, T] is 1, 0 elsewhere.

    Args:
        values: one vector per sample, as long as its row has ones.

    Returns:
        [B, T] float32
    """
    flat = torch.cat([numbers.to(positions.device, torch.float32) for numbers in values])
    return torch.zeros(positions.shape, device=positions.device).masked_scatter(positions.bool(), flat)
