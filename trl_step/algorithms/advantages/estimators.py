"""The advantage estimators, by their names in `PPOConfig.advantage_estimator`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch

from trl_step.algorithms.advantages.gae import Advantages, advantages_and_returns, length_adaptive_lam
from trl_step.algorithms.advantages.group import Groups, grpo_advantages, rloo_advantages
from trl_step.algorithms.advantages.returns import remax_advantages, returns_to_go
from trl_step.core import ReduceSum, keep, masked_whiten

AdvantageEstimator = Literal["gae", "grpo", "rloo", "reinforce_plus_plus", "remax"]
GROUP_ESTIMATORS = ("grpo", "rloo")
"""Those that compare the answers to one prompt."""
WHITENING = ("gae", "reinforce_plus_plus")
"""Those that whiten their advantages unless `whiten_advantages` says otherwise."""


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


def configured_advantages(
    settings: Any,
    values: torch.Tensor,
    rewards: torch.Tensor,
    mask: torch.Tensor,
    comparison: Comparison,
    final_values: torch.Tensor | None = None,
    reduce_sum: ReduceSum = keep,
) -> Advantages:
    """The advantages that `settings` (a `PPOConfig`) ask for, whitened if they say so; values are masked.

    Args:
        values: [B, T]; an estimator that needs none makes nothing of them
        rewards, mask: [B, T], of all samples of the step on this process
        comparison: of these samples, see `advantages_without_values`
        final_values: of the samples that were cut off [B], see `advantages_and_returns`
        reduce_sum: adds over processes

    Raises:
        ValueError: the comparison is not of these samples.
    """
    if settings.needs_values:
        alpha = settings.length_adaptive_alpha
        return advantages_and_returns(
            values,
            rewards,
            mask,
            settings.gamma,
            settings.lam if alpha is None else length_adaptive_lam(mask, alpha),
            settings.whiten_rewards,
            # differs from v0.7: masked tokens took time, and whitened rewards leaked out of the padding
            masked_steps_take_time=settings.exact_v07,
            reduce_sum=reduce_sum,
            whiten=settings.whitens,
            value_lam=settings.value_lam,
            of_turns=settings.gae_level == "turn",
            final_values=final_values,
        )
    if settings.whiten_rewards:
        rewards = masked_whiten(rewards, mask, shift_mean=False, reduce_sum=reduce_sum)
    advantages = advantages_without_values(
        rewards, mask, comparison, settings.advantage_estimator, settings.gamma, settings.group_scale, reduce_sum
    )
    if settings.whitens:
        advantages = masked_whiten(advantages, mask, reduce_sum=reduce_sum) * mask
    return Advantages(values * mask, advantages, returns_to_go(rewards, mask, settings.gamma))
