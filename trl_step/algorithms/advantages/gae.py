"""Generalized advantage estimation over the counted tokens of each sample."""

from __future__ import annotations

from typing import NamedTuple

import torch

from trl_step.algorithms.rewards import last_counted
from trl_step.core import ReduceSum, keep, masked_whiten


class Advantages(NamedTuple):
    """All [B, T]."""

    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


def gae(values: torch.Tensor, rewards: torch.Tensor, gamma: float, lam: float | torch.Tensor) -> torch.Tensor:
    """Advantages where every column is a time step and the value after the last one is 0.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1}
    (Schulman et al. 2015, https://arxiv.org/abs/1506.02438, eq. 16)

    Args:
        values, rewards: [B, T] -> [B, T]
        lam: a number, or one for each sample [B]
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
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> torch.Tensor:
    """`gae` where only counted tokens are time steps; prompt, tool tokens and padding take no time. 0 elsewhere.

    Each row's counted tokens are moved to the left, so a row costs as many steps as the longest response.

    Args:
        values, rewards, mask: [B, T] -> [B, T]
        gamma: discount per counted token
        lam: a number, or one for each sample [B]
    """
    counts = mask.sum(dim=1)
    steps = int(counts.max())
    order = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)[:, :steps]
    within = torch.arange(steps, device=mask.device) < counts.unsqueeze(1)
    packed = gae(values.gather(1, order) * within, rewards.gather(1, order) * within, gamma, lam)
    return torch.zeros_like(values).scatter(1, order, packed * within)


def gae_of_turns(
    values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float | torch.Tensor
) -> Advantages:
    """`gae` where a turn is one time step; a turn is a run of counted tokens between tokens that do not count.

    The reward of a turn is the sum of its tokens' rewards, its value that of its last token. Every token of a turn has
    the turn's advantage, and the turn's return as the target of its value (`values` are those of the tokens). 0 where
    the mask is 0.

    Args:
        values, rewards, mask: [B, T]
        gamma: discount per turn
        lam: of turns; a number, or one for each sample [B]
    """
    counted = mask.bool()
    begins = counted & ~torch.nn.functional.pad(counted, (1, 0))[:, :-1]
    ends = counted & ~torch.nn.functional.pad(counted, (0, 1))[:, 1:]
    turn = (begins.cumsum(dim=1) - 1).clamp(min=0)
    number = begins.sum(dim=1)
    none = values.new_zeros(len(values), max(int(number.max()), 1))
    turn_rewards = none.scatter_add(1, turn, rewards * counted)
    turn_values = none.scatter_add(1, turn, values * ends)
    within = torch.arange(none.shape[1], device=mask.device) < number.unsqueeze(1)
    advantages = gae_of_counted(turn_values, turn_rewards, within, gamma, lam)
    returns = (advantages + turn_values).gather(1, turn) * mask
    return Advantages(values, advantages.gather(1, turn) * mask, returns)


def length_adaptive_lam(mask: torch.Tensor, alpha: float) -> torch.Tensor:
    """lambda of each sample, 1 - 1 / (alpha |y|) with its number |y| of counted tokens, at least 0: [B].

    Yue et al. 2025 (VAPO), https://arxiv.org/abs/2504.05118.

    Args:
        mask: [B, T]
        alpha: above 0; 0.05 in the paper
    """
    return (1 - 1 / (alpha * mask.sum(dim=1).clamp(min=1).float())).clamp(min=0)


def advantages_and_returns(
    values: torch.Tensor,
    rewards: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float | torch.Tensor,
    whiten_rewards: bool = False,
    masked_steps_take_time: bool = False,
    reduce_sum: ReduceSum = keep,
    *,
    whiten: bool = True,
    value_lam: float | None = None,
    of_turns: bool = False,
    final_values: torch.Tensor | None = None,
) -> Advantages:
    """Masked values, whitened advantages, and returns = unwhitened advantages + values.

    Args:
        values, rewards, mask: [B, T]
        gamma: discount per token
        lam: the trade of bias (0) against variance (1); a number, or one for each sample [B]
        whiten_rewards: scale the rewards to unit variance first; their mean stays
        masked_steps_take_time: release 0.7 counts a masked token between counted ones as a step of value and reward 0
        reduce_sum: spans the processes over which whitening is done
        whiten: give the advantages mean 0 and variance 1 over all counted tokens
        value_lam: lambda of the returns; None: that of the advantages
        of_turns: a turn is a step, see `gae_of_turns`
        final_values: value of the state after each sample that was cut off, 0 for one that came to its end, [B]; None:
            all came to their end
    """
    values, rewards = values * mask, rewards * mask
    if whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce_sum=reduce_sum)
        if not masked_steps_take_time:
            rewards = rewards * mask
    if final_values is not None:  # V_{t+1} of the last counted token; values are those of whitened rewards already
        last = last_counted(mask).unsqueeze(1)
        rewards = rewards.scatter_add(1, last, gamma * final_values.to(rewards.dtype).unsqueeze(1))

    def estimate(lam: float | torch.Tensor) -> Advantages:
        if of_turns:
            return gae_of_turns(values, rewards, mask, gamma, lam)
        if masked_steps_take_time:
            advantages = gae(values, rewards, gamma, lam)
        else:
            advantages = gae_of_counted(values, rewards, mask, gamma, lam)
        return Advantages(values, advantages, advantages + values)

    found = estimate(lam)
    if value_lam is not None:
        found = found._replace(returns=estimate(value_lam).returns)
    return found._replace(advantages=masked_whiten(found.advantages, mask, reduce_sum=reduce_sum)) if whiten else found
