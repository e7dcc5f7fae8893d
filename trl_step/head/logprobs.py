"""Log-probability of chosen tokens, and the divergence of two models, from hidden states.

The vocabulary is visited in chunks of rows and tiles of columns, see `vocabulary`: [N, V] never exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from trl_step.algorithms.kl import kl_penalty
from trl_step.head.tiles import (
    ChunkBuffers,
    OutputHead,
    RowChunk,
    RowSoftmax,
    TiledSoftmax,
    column_tiles,
    compute_dtype,
    logits_of,
    row_chunks,
    tile_logits,
    tile_of,
    wide,
)


@torch.no_grad()
def token_logprobs(
    hidden: torch.Tensor, labels: torch.Tensor, head: OutputHead, temperature: float = 1.0
) -> torch.Tensor:
    """log p(label) of each row, where p = softmax(logits / temperature): [N] float32 (float64 for such a head).

    Args:
        hidden: [N, D], what enters the output embedding
        labels: [N] int64
        temperature: the sampling temperature under which the log-probs are taken
    """
    dtype, vocabulary = compute_dtype(head.weight), len(head.weight)
    logprobs = torch.empty(labels.shape, dtype=wide(dtype), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        rows_in, weight = hidden.to(dtype), head.weight.to(dtype)
        for chunk in row_chunks(rows_in, labels, vocabulary):
            softmax = RowSoftmax(chunk.labels)
            for columns in column_tiles(len(chunk.labels), vocabulary, hidden.device):
                raw = torch.mm(chunk.hidden, weight[columns].t())
                if softmax.see_product(raw, head, columns, temperature) is None:
                    softmax.see(logits_of(raw, head, columns, temperature).values, columns)
            logprobs[chunk.rows] = softmax.result().logprobs.squeeze(1)
    return logprobs


class Divergence(NamedTuple):
    """All [N]: log-probs of the labels by policy and reference, and the divergence in nats."""

    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    divergence: torch.Tensor


@torch.no_grad()
def exact_divergence(
    hidden: torch.Tensor,
    ref_hidden: torch.Tensor,
    labels: torch.Tensor,
    head: OutputHead,
    ref_head: OutputHead,
    temperature: float = 1.0,
    buffers: ChunkBuffers | None = None,
) -> Divergence:
    """KL(policy || reference) over the whole vocabulary, row by row, without two [N, V] tensors.

    Args:
        hidden, ref_hidden: [N, D], of policy and reference; their widths may differ, their vocabularies may not
        labels: [N] int64
        temperature: as in `token_logprobs`
        buffers: to be used again; None: fresh ones
    """
    buffers, dtype = buffers or ChunkBuffers(), compute_dtype(head.weight)
    columns = [torch.zeros(labels.shape, dtype=wide(dtype), device=hidden.device) for _ in range(3)]
    logprobs, ref_logprobs, divergence = columns
    with torch.autocast(hidden.device.type, enabled=False):
        sides = [
            (states.to(dtype), one.weight.to(dtype), one, name)
            for states, one, name in ((hidden, head, "policy"), (ref_hidden, ref_head, "reference"))
        ]
        kept_bytes = 2 * logprobs.element_size()  # the logits of both
        chunks = (row_chunks(states, labels, len(weight), kept_bytes) for states, weight, *_ in sides)
        for pair in zip(*chunks, strict=True):
            (ours, our_tiles), (theirs, their_tiles) = (
                _kept_logits(chunk, *side[1:], temperature, buffers) for chunk, side in zip(pair, sides, strict=True)
            )
            chunk = pair[0]
            logprobs[chunk.rows] = ours.logprobs.squeeze(1)
            ref_logprobs[chunk.rows] = theirs.logprobs.squeeze(1)
            for mine, yours in zip(our_tiles, their_tiles, strict=True):
                mine.sub_(ours.peak).sub_(ours.log_total)
                yours.sub_(theirs.peak).sub_(theirs.log_total)
                divergence[chunk.rows] += kl_penalty(mine, yours, "full")
    return Divergence(*columns)


def _kept_logits(
    chunk: RowChunk, weight: torch.Tensor, head: OutputHead, name: str, temperature: float, buffers: ChunkBuffers
) -> tuple[TiledSoftmax, list[torch.Tensor]]:
    """One chunk's softmax, and the logits of its tiles."""
    softmax, kept, (rows, _) = RowSoftmax(chunk.labels), [], chunk.hidden.shape
    buffer = buffers.numbers(name, rows * len(weight), wide(weight.dtype), weight.device)
    for columns in column_tiles(rows, len(weight), weight.device):
        logits = tile_logits(chunk.hidden, weight, head, columns, temperature).values
        kept.append(tile_of(buffer, rows, columns).copy_(logits))
        softmax.see(logits, columns)
    return softmax.result(), kept


def logprobs_of_logits(logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The plain, differentiable path: logits [..., V], labels [...] -> [...] float32."""
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    return -F.cross_entropy(scaled.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
