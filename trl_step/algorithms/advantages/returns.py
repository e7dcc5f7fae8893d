"""Rewards that follow a token, as its advantage: no value head is needed."""

from __future__ import annotations

import torch

from trl_step.algorithms.advantages.gae import gae_of_counted


def returns_to_go(rewards: torch.Tensor, mask: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """G_t = r_t + gamma G_{t+1} over the counted tokens of each sample, 0 elsewhere: [B, T].

    The advantages of REINFORCE++ before they are whitened (Hu 2025, https://arxiv.org/abs/2501.03262).

    Args:
        rewards, mask: [B, T]
        gamma: discount per counted token
    """
    return gae_of_counted(torch.zeros_like(rewards), rewards * mask, mask, gamma, 1.0)


def remax_advantages(
    rewards: torch.Tensor, mask: torch.Tensor, baseline_scores: torch.Tensor, gamma: float = 1.0
) -> torch.Tensor:
    """A_t = G_t - score of the greedy answer to the same prompt, [B, T] (Li et al. 2023,
    https://arxiv.org/abs/2310.10505).

    Args:
        rewards, mask: [B, T]
        baseline_scores: [B], in the scale of the rewards
    """
    return (returns_to_go(rewards, mask, gamma) - baseline_scores.unsqueeze(1)) * mask
