"""The estimators that need no values, by the name of `PPOConfig.advantage_estimator`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from trl_step.algorithms.advantages.group import Groups, grpo_advantages, rloo_advantages
from trl_step.algorithms.advantages.returns import remax_advantages, returns_to_go
from trl_step.core import ReduceSum, keep


class Comparison(NamedTuple):
    """What the rewards of a step are compared with."""

    groups: Groups | None = None
    """answers to one prompt, for `grpo` and `rloo`"""
    baseline_scores: torch.Tensor | None = None
    """[B], for `remax`"""


def advantages_without_values(
    rewards: torch.Tensor,
    mask: torch.Tensor,
    comparison: Comparison,
    estimator: str,
    gamma: float = 1.0,
    group_scale: str = "std",
    reduce_sum: ReduceSum = keep,
) -> torch.Tensor:
    """Advantages [B, T], 0 where the mask is 0; not whitened.

    Args:
        rewards, mask: [B, T], of all samples of the step on this process
        comparison: of these samples
        estimator: `grpo`, `rloo`, `reinforce_plus_plus` or `remax`
        gamma: discount per counted token, of the last two
        group_scale: of `grpo`
        reduce_sum: adds over processes

    Raises:
        ValueError: the comparison is not of these samples.
    """
    rewards = rewards * mask
    if estimator == "reinforce_plus_plus":
        return returns_to_go(rewards, mask, gamma)
    groups, baselines = comparison
    if estimator == "remax":
        if baselines is None or len(baselines) != len(rewards):
            raise ValueError("remax needs the baseline_scores of these samples, which only step knows")
        return remax_advantages(rewards, mask, baselines, gamma)
    if groups is None or groups.own.stop - groups.own.start != len(rewards):
        raise ValueError(
            f"{estimator} needs the groups of these samples, which only step knows: call compute_advantages from "
            "inside of a step, with all of its samples"
        )
    totals = groups.gather(rewards.sum(dim=1), reduce_sum)
    if estimator == "grpo":
        found = grpo_advantages(totals, groups.everyone, group_scale)
    else:
        found = rloo_advantages(totals, groups.everyone)
    return found[groups.own].unsqueeze(1) * mask
