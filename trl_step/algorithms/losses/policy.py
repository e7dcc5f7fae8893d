"""Losses of the policy, token by token, from log-probs now and at rollout time."""

from __future__ import annotations

import torch

from trl_step.algorithms.losses.tokens import TokenLosses


def clipped_policy_losses(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> TokenLosses:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(logprobs - old_logprobs) (Schulman et al. 2017, eq. 7)."""
    ratio = torch.exp(logprobs - old_logprobs)
    free = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return TokenLosses(torch.maximum(free, clipped), (clipped > free).float())
