"""Generalized advantage estimation over the counted tokens of each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch

from trl_step.core import ReduceSum, keep, masked_whiten


class Advantages(NamedTuple):
    """All [B, T]."""

    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def gae(values: torch.Tensor, rewards: torch.Tensor, gamma: float, lam: float) -> torch.Tensor:
    """Advantages where every column is a time step and the value after the last one is 0.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1}
    (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16)

    Args:
        values, rewards: [B, T] -> [B, T]
    """
    next_values = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.empty_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def gae_of_counted(
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> torch.Tensor:
    """`gae` where only counted tokens are time steps; prompt, tool tokens and padding take no time. 0 elsewhere.

    Each row's counted tokens are moved to the left, so a row costs as many steps as the longest response.
    """
    counts = mask.sum(dim=1)
    steps = int(counts.max())
    order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)[:, :steps]
    within = torch.arange(steps, device=mask.device) < counts.unsqueeze(1)
    packed = gae(values.gather(1, order) * within, rewards.gather(1, order) * within, gamma, lam)
    return torch.zeros_like(values).scatter(1, order, packed * within)


def advantages_and_returns(
    values: torch.Tensor,
    rewards: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
    whiten_rewards: bool = False,
    masked_steps_take_time: bool = False,
    reduce_sum: ReduceSum = keep,
) -> Advantages:
    """Masked values, whitened advantages, and returns = unwhitened advantages + values.

    Args:
        values, rewards, mask: [B, T]
        gamma: discount per token
        lam: the trade of bias (0) against variance (1)
        whiten_rewards: scale the rewards to unit variance first; their mean stays
        masked_steps_take_time: release 0.7 counts a masked token between counted ones as a step of value and reward 0
        reduce_sum: spans the processes over which whitening is done
    """
    values, rewards = values * mask, rewards * mask
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce_sum=reduce_sum)
        if not masked_steps_take_time:
            rewards = rewards * mask
    if masked_steps_take_time:
        advantages = gae(values, rewards, gamma, lam)
    else:
        advantages = gae_of_counted(values, rewards, mask, gamma, lam)
    returns = advantages + values
    return Advantages(values, masked_whiten(advantages, mask, reduce_sum=reduce_sum), returns)
