"""What the caller of `step` gives for an algorithm: whether it is complete and can act, and what follows from it."""

from __future__ import annotations

from typing import Any

import torch

from trl_step.algorithms.advantages.estimators import GROUP_ESTIMATORS, Comparison
from trl_step.algorithms.importance import importance_weights, mismatch_statistics
from trl_step.algorithms.losses.tokens import positive_factors
from trl_step.models.notices import warn_user
from trl_step.trainer.batches.checks import StepInputs
from trl_step.trainer.batches.groups import group_samples, nothing_to_compare, warn_of_mixed_groups
from trl_step.trainer.batches.rollout import Rollout
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes


def comparison_of(given: StepInputs, config: PPOConfig, kl_coef: float, processes: Processes) -> Comparison:
    """What the rewards of this step are compared with; every process calls it.

    Args:
        kl_coef: of this step

    Raises:
        ValueError: something that the settings need was not given, or could not act; on all processes.
    """
    processes.raise_together(what_is_missing(given, config, kl_coef))
    if processes.count > 1:
        processes.raise_together(given_on_some(processes.together(lambda: names_given(given))))
    warn_of_what_is_ignored(given, config)
    groups = None
    if compares_groups(given, config):
        groups = group_samples(given.queries, given.group_ids, processes.together, processes.index)
        processes.raise_together(nothing_to_compare(groups, given.group_ids))
        if given.group_ids is not None:
            warn_of_mixed_groups(given.queries, given.group_ids)
    return Comparison(groups, given.baseline_scores)


def what_is_missing(given: StepInputs, config: PPOConfig, kl_coef: float) -> ValueError | None:
    """An error if something that the settings need was not given, or if what was given could not act."""
    baselines, sampled = given.baseline_scores, given.precomputed.sampling_logprobs
    if given.advantages is not None and config.kl_in == "reward" and kl_coef != 0:
        return ValueError(
            f"advantages are given, so a KL penalty in the reward (kl_in='reward', coefficient {kl_coef:g}) could not "
            "act: set kl_in='loss' with kl_penalty='k3', or init_kl_coef=0 with adap_kl_ctrl=False"
        )
    if config.advantage_estimator == "remax" and given.advantages is None and baselines is None:
        return ValueError(
            "baseline_scores are missing: advantage_estimator='remax' needs the score of the greedy answer to each "
            "query, baseline_scores[0] to baseline_scores[B - 1]"
        )
    if config.importance_correction is not None and sampled is None:
        return ValueError(
            f"sampling_logprobs are missing: importance_correction='{config.importance_correction}' needs the "
            "log-probs by which the responses were drawn, one vector per sample"
        )
    return None


def names_given(given: StepInputs) -> list[str]:
    """Those of the optional lists of which processes exchange something that were given."""
    lists = {
        "sampling_logprobs": given.precomputed.sampling_logprobs,
        "advantages": given.advantages,
        "baseline_scores": given.baseline_scores,
        "group_ids": given.group_ids,
        "truncated": given.truncated,
    }
    return sorted(name for name, items in lists.items() if items is not None)


def given_on_some(names: list[list[str]]) -> ValueError | None:
    """An error if processes were given different lists: each of them has its part in what is exchanged.

    Args:
        names: of each process, see `names_given`
    """
    if all(each == names[0] for each in names):
        return None
    some = set().union(*names) - set(names[0]).intersection(*names)
    return ValueError(
        f"{', '.join(sorted(some))} must be given to step on all processes or on none: by process, the lists are "
        f"{names}"
    )


def compares_groups(given: StepInputs, config: PPOConfig) -> bool:
    """Whether the advantages of this step come from groups."""
    return config.advantage_estimator in GROUP_ESTIMATORS and given.advantages is None


def needs_values(given: StepInputs, config: PPOConfig) -> bool:
    """Whether the advantages of this step come from values."""
    return config.needs_values and given.advantages is None


def warn_of_what_is_ignored(given: StepInputs, config: PPOConfig) -> None:
    """Say which lists have no effect."""
    why = f"advantage_estimator is '{config.advantage_estimator}'"
    if given.advantages is not None:
        why = "advantages are given"
    unused = {
        "baseline_scores": given.baseline_scores is not None and config.advantage_estimator != "remax",
        "group_ids": given.group_ids is not None and not compares_groups(given, config),
        "values": given.precomputed.old_values is not None and not needs_values(given, config),
        "truncated": any(given.truncated or ()) and not needs_values(given, config),
    }
    for name, is_unused in unused.items():
        if is_unused:
            warn_user(f"{name} are ignored: {why}")


def warn_of_one_token(rollout: Rollout, config: PPOConfig, processes: Processes) -> None:
    """Say that whitening, which the settings ask for, leaves nothing of the advantage of the only token that counts."""
    whitens = config.whitens if rollout.advantages is None else config.whiten_advantages
    if whitens and processes.count == 1 and int(rollout.positions.counted.sum()) == 1:
        warn_user(
            "one token counts in the whole batch, and whitening makes its advantage 0, so the policy learns nothing "
            "from this step: look at the response_masks, which are 1 where the policy wrote a token, give step more "
            "samples, or set whiten_advantages=False"
        )


def with_factors(
    rollout: Rollout, raw_scores: torch.Tensor, config: PPOConfig, processes: Processes
) -> tuple[Rollout, dict[str, Any]]:
    """The batch with the factors on its losses, and statistics of the sampler's log-probs.

    Args:
        raw_scores: as they were given, [B]
    """
    mask, stats = rollout.mask, {}
    if rollout.sampling_logprobs is not None:
        logprobs = rollout.old_logprobs, rollout.sampling_logprobs, mask
        found = mismatch_statistics(*logprobs, processes.sum, processes.max_of)
        stats = {f"ppo/{key}": value for key, value in found.items()}
        if config.importance_correction is not None:
            factors = importance_weights(*logprobs, config.importance_correction, config.importance_bounds)
            rollout = rollout._replace(importance=factors)
    if config.positive_nll_coef:
        normalization = config.loss_normalization, config.loss_constant_length
        rollout = rollout._replace(positive=positive_factors(mask, raw_scores > 0, *normalization, processes.sum))
    return rollout, stats
