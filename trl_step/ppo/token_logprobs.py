"""Log-probability of chosen tokens, and the divergence of two models, from hidden states.

The vocabulary is visited in chunks of rows and tiles of columns, see `vocabulary`: [N, V] never exists.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from trl_step.ppo.kl import kl_penalty
from trl_step.ppo.vocabulary import (
    ChunkBuffers,
    OutputHead,
    RowSoftmax,
    TiledSoftmax,
    column_tiles,
    compute_dtype,
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
        for rows in row_chunks(len(labels), vocabulary):
            softmax, chunk = RowSoftmax(labels[rows]), rows_in[rows]
            for columns in column_tiles(len(chunk), vocabulary, chunk.device):
                softmax.see(tile_logits(chunk, weight, head, columns, temperature).values, columns)
            logprobs[rows] = softmax.result().logprobs.squeeze(1)
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
        for rows in row_chunks(len(labels), len(head.weight)):
            (ours, our_tiles), (theirs, their_tiles) = (
                _kept_logits(states[rows], labels[rows], weight, one, temperature, buffers, name)
                for states, weight, one, name in sides
            )
            logprobs[rows], ref_logprobs[rows] = ours.logprobs.squeeze(1), theirs.logprobs.squeeze(1)
            for mine, yours in zip(our_tiles, their_tiles, strict=True):
                mine.sub_(ours.peak).sub_(ours.log_total)
                yours.sub_(theirs.peak).sub_(theirs.log_total)
                divergence[rows] += kl_penalty(mine, yours, "full")
    return Divergence(*columns)


def _kept_logits(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    head: OutputHead,
    temperature: float,
    buffers: ChunkBuffers,
    name: str,
) -> tuple[TiledSoftmax, list[torch.Tensor]]:
    """One chunk's softmax, and the logits of its tiles."""
    softmax, kept = RowSoftmax(labels), []
    buffer = buffers.numbers(name, len(hidden) * len(weight), wide(hidden.dtype), hidden.device)
    for columns in column_tiles(len(hidden), len(weight), hidden.device):
        logits = tile_logits(hidden, weight, head, columns, temperature).values
        kept.append(tile_of(buffer, len(hidden), columns).copy_(logits))
        softmax.see(logits, columns)
    return softmax.result(), kept


def logprobs_of_logits(logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The plain, differentiable path: logits [..., V], labels [...] -> [...] float32."""
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    return -F.cross_entropy(scaled.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
