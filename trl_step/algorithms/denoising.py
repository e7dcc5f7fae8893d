"""Denoising as a policy: each step of a diffusion model draws the next latents from a normal distribution.

`B` samples; latents are [B, C, H, W], or any other shape with the samples first. DDIM (Song et al. 2020,
https://arxiv.org/abs/2010.02502) gives mean and deviation; DDPO (Black et al. 2023, https://arxiv.org/abs/2305.13301)
trains on the log-probs.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch

PredictionType = Literal["epsilon", "sample", "v_prediction"]
"""What a model predicts: the noise in the latents, the clean latents, or the velocity between the two."""


class Denoised(NamedTuple):
    """The distribution of the latents after a step: normal, each number by itself."""

    mean: torch.Tensor
    """[B, C, H, W]"""
    deviation: torch.Tensor
    """standard deviation; broadcasts against the mean; 0 for a step without noise"""


def ddim_distribution(
    prediction: torch.Tensor,
    latents: torch.Tensor,
    alpha: torch.Tensor,
    next_alpha: torch.Tensor,
    eta: float,
    prediction_type: str = "epsilon",
    clip_range: float | None = None,
    noise_from_clipped: bool = False,
) -> Denoised:
    """Equations 12 and 16 of the DDIM paper.

    Args:
        prediction: of the model, [B, C, H, W]
        latents: before the step, [B, C, H, W]
        alpha: product of the alphas up to this time step, 0 to 1; broadcasts against the latents
        next_alpha: the same for the time step that the step goes to
        eta: how much noise a step adds: 0 none, 1 as much as DDPM
        prediction_type: see `PredictionType`
        clip_range: predicted clean latents are clipped to plus and minus this; None: they are not
        noise_from_clipped: take the noise from the clipped clean latents, not from the prediction

    Raises:
        ValueError: an unknown `prediction_type`.
    """
    beta = 1 - alpha
    if prediction_type == "epsilon":
        clean, noise = (latents - beta**0.5 * prediction) / alpha**0.5, prediction
    elif prediction_type == "sample":
        clean, noise = prediction, (latents - alpha**0.5 * prediction) / beta**0.5
    elif prediction_type == "v_prediction":
        clean = alpha**0.5 * latents - beta**0.5 * prediction
        noise = alpha**0.5 * prediction + beta**0.5 * latents
    else:
        raise ValueError(
            f"the scheduler's prediction_type {prediction_type!r} is unknown: use one of {get_args(PredictionType)}"
        )
    if clip_range is not None:
        clean = clean.clamp(-clip_range, clip_range)
    if noise_from_clipped:
        noise = (latents - alpha**0.5 * clean) / beta**0.5
    deviation = eta * ((1 - next_alpha) / beta * (1 - alpha / next_alpha)) ** 0.5
    mean = next_alpha**0.5 * clean + (1 - next_alpha - deviation**2) ** 0.5 * noise
    return Denoised(mean, deviation)


def denoising_logprobs(latents: torch.Tensor, distribution: Denoised) -> torch.Tensor:
    """The log-density of `latents` [B, C, H, W] under the distribution, as a **mean** over a sample's numbers, [B].

    Ratios of a mean over thousands of numbers stay near 1: a clip range for them is near 1e-4. A step without noise has
    no density; its log-prob is 0, and nothing is learnt from it.
    """
    mean, deviation = distribution
    # differs from v0.7: the log-prob of a step without noise was NaN, and so were all weights after it
    random = deviation > 0
    spread = torch.where(random, deviation, 1.0)
    logprobs = -((latents - mean) ** 2) / (2 * spread**2) - spread.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(random, logprobs, 0.0).flatten(start_dim=1).mean(dim=1)


def guided(prediction: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance (Ho & Salimans 2022, https://arxiv.org/abs/2207.12598).

    Args:
        prediction: [2 B, C, H, W], first without the prompt, then with it
        scale: 1 is the prediction with the prompt; more exaggerates what the prompt changes

    Returns:
        [B, C, H, W]
    """
    without, with_prompt = prediction.chunk(2)
    return without + scale * (with_prompt - without)
