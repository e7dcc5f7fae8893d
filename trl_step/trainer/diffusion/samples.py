"""Samples of an epoch: the latents of every denoising step, and what is trained on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


class DenoisingSamples(NamedTuple):
    """B samples with S denoising steps each, on the device."""

    prompt_ids: torch.Tensor
    """int64 [B, L], padded"""
    prompt_embeds: torch.Tensor
    """[B, L, D]"""
    timesteps: torch.Tensor
    """int64 [B, S]"""
    latents: torch.Tensor
    """before each step, [B, S, C, H, W]"""
    next_latents: torch.Tensor
    """after each step, [B, S, C, H, W]"""
    log_probs: torch.Tensor
    """of the latents after each step, [B, S] float32"""

    def __getitem__(self, key: Any) -> Any:
        """A field by its number or, as in release 0.7, where samples are a dictionary, by its name."""
        return getattr(self, key) if isinstance(key, str) else tuple.__getitem__(self, key)


class DenoisingBatch(NamedTuple):
    """One step of each of b samples, and what `calculate_loss` takes of it."""

    latents: torch.Tensor
    """before the step, [b, C, H, W]"""
    timesteps: torch.Tensor
    """int64 [b]"""
    next_latents: torch.Tensor
    """after the step, [b, C, H, W]"""
    log_probs: torch.Tensor
    """of the latents after it, [b] float32"""
    advantages: torch.Tensor
    """[b] float32"""


def joined(parts: Sequence[DenoisingSamples | Mapping[str, torch.Tensor]]) -> DenoisingSamples:
    """All samples, one part after the other; a part may be a dictionary, as a subclass of release 0.7 makes it."""
    return DenoisingSamples(*(torch.cat([part[name] for part in parts]) for name in DenoisingSamples._fields))  # type: ignore[index]


class Order(NamedTuple):
    """The order in which samples are trained, and each one's steps."""

    rows: torch.Tensor
    """number of the sample at each place, int64 [B]"""
    steps: torch.Tensor
    """numbers of its steps, int64 [B, S]"""


def as_drawn(samples: DenoisingSamples) -> Order:
    """First to last."""
    count, steps = samples.timesteps.shape
    device = samples.timesteps.device
    return Order(torch.arange(count, device=device), torch.arange(steps, device=device).repeat(count, 1))


def shuffled(order: Order) -> Order:
    """Samples, and the steps of each, in another order, drawn from torch's stream of the device."""
    count, steps = order.steps.shape
    device = order.rows.device
    places = torch.randperm(count, device=device)
    times = torch.stack([torch.randperm(steps, device=device) for _ in range(count)])
    return Order(order.rows[places], order.steps[places].gather(1, times))


def take(
    samples: DenoisingSamples, advantages: torch.Tensor, rows: torch.Tensor, steps: torch.Tensor
) -> DenoisingBatch:
    """Step `steps[i]` of sample `rows[i]`, each int64 [b]."""
    return DenoisingBatch(
        samples.latents[rows, steps],
        samples.timesteps[rows, steps],
        samples.next_latents[rows, steps],
        samples.log_probs[rows, steps],
        advantages[rows],
    )
