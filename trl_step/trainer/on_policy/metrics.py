"""The metrics of trainers with `train()`, under the names that TRL's documents list, from the statistics of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

OF_ALL = ("rloo", "ppo")


class Metric(NamedTuple):
    """One logged metric."""

    name: str
    formula: str
    source: str = ""
    """the statistic of `step` that it is; empty: the loop knows it"""
    algorithms: tuple[str, ...] = OF_ALL


METRICS: tuple[Metric, ...] = (
    Metric("eps", "answers per second since `train` was called, over all processes"),
    Metric("objective/kl", "mean over answers of Σ_t kl_t", "objective/kl"),
    Metric("objective/entropy", "mean over answers of Σ_t -old_logprob_t", "objective/entropy"),
    Metric("objective/non_score_reward", "-kl_coef · `objective/kl`"),
    Metric("objective/rlhf_reward", "mean of score - kl_coef Σ_t kl_t, of the score after `normalize_reward`"),
    Metric("objective/scores", "mean score, `missing_eos_penalty` subtracted, before `normalize_reward`"),
    Metric("policy/approxkl_avg", "mean over tokens of (logprob - old_logprob)² / 2", "ppo/policy/approxkl"),
    Metric("policy/clipfrac_avg", "share of tokens where the policy clip decided", "ppo/policy/clipfrac"),
    Metric("policy/entropy_avg", "mean entropy of the policy's distribution at a token, nats", "ppo/policy/entropy"),
    Metric("loss/policy_avg", "mean policy loss", "ppo/loss/policy"),
    Metric("loss/value_avg", "mean value loss, before `vf_coef`", "ppo/loss/value", ("ppo",)),
    Metric("val/clipfrac_avg", "share of tokens where the value clip decided; 0 without values", "ppo/val/clipfrac"),
    Metric("val/ratio", "mean over mini-batches of the mean ratio exp(logprob - old_logprob) of a token",
           "ppo/policy/ratio_mean"),
    Metric("val/ratio_var", "unbiased variance of that mean over mini-batches; 0 if there is one",
           "ppo/policy/ratio_var"),
    Metric("val/num_eos_tokens", "answers of the step that came to their end, on all processes"),
    Metric("lr", "learning rate that the step used", "ppo/learning_rate"),
    Metric("episode", "answers so far, on all processes"),
)  # fmt: skip
"""A mean without more is one over all mini-batches of the step, each counted once."""


def metrics_of(algorithm: str, stats: Mapping[str, Any], known: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step, in the order of `METRICS`.

    Args:
        algorithm: `rloo` or `ppo`
        stats: what `step` returned
        known: those that have no source in it
    """
    return {
        one.name: float(stats.get(one.source, 0.0)) if one.source else float(known[one.name])
        for one in METRICS
        if algorithm in one.algorithms
    }
