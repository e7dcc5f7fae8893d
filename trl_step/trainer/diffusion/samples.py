"""Samples of an epoch: the latents of every denoising step, and what is trained on them."""

from __future__ import annotations

from typing import NamedTuple

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


def joined(parts: list[DenoisingSamples]) -> DenoisingSamples:
    """All samples, one part after the other."""
    return DenoisingSamples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def shuffled(samples: DenoisingSamples) -> tuple[torch.Tensor, torch.Tensor]:
    """An order of the samples, int64 [B], and for each place in it an order of the sample's steps, int64 [B, S].

    Drawn from torch's stream of the device.
    """
    count, steps = samples.timesteps.shape
    device = samples.timesteps.device
    order = torch.randperm(count, device=device)
    return order, torch.stack([torch.randperm(steps, device=device) for _ in range(count)])


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
