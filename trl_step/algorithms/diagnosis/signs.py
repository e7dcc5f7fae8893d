"""The numbers of a step that diagnoses are made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

ALWAYS_FINITE = ("objective/kl", "ppo/policy/entropy", "ppo/policy/approxkl", "ppo/mean_scores", "ppo/loss/total")
"""Statistics that are NaN or infinite only in a run that is lost."""


class Signs(NamedTuple):
    """The numbers of one step that diagnoses are made from; NaN if the statistics do not have them."""

    kl: float
    surprise: float
    entropy: float
    ratio_error: float
    clipped: float
    explained: float
    mean_score: float
    std_score: float
    ended: float
    length_deviation: float
    approxkl: float = math.nan
    length: float = math.nan
    """mean number of tokens of a response"""
    mismatch: float = math.nan
    """mean of the sampler's log-prob less the policy's"""
    mismatch_slope: float = math.nan
    mismatch_below: float = math.nan
    """share of tokens that the sampler found less likely"""
    not_finite: str = ""
    """those of `ALWAYS_FINITE` that are there and are no finite numbers, with commas"""
    skipped: float = math.nan
    """mini-batches that `ratio_threshold` left out"""
    learning_rate: float = math.nan

    @classmethod
    def of(cls, stats: Mapping[str, Any]) -> Signs:
        """From what `PPOTrainer.step` returned, in this or another release, or from a saved copy of its scalars."""

        def number(key: str) -> float:
            value = stats.get(key)
            return math.nan if value is None else float(value)

        return cls(
            kl=number("objective/kl"),
            surprise=number("objective/token_surprise"),
            entropy=number("ppo/policy/entropy"),
            ratio_error=number("ppo/policy/ratio_error"),
            clipped=number("ppo/policy/clipfrac"),
            explained=number("ppo/val/var_explained"),
            mean_score=number("ppo/mean_scores"),
            std_score=number("ppo/std_scores"),
            ended=number("tokens/responses_ended"),
            length_deviation=number("tokens/responses_len_std"),
            approxkl=number("ppo/policy/approxkl"),
            length=number("tokens/responses_len_mean"),
            mismatch=number("ppo/sampling/kl"),
            mismatch_slope=number("ppo/sampling/slope"),
            mismatch_below=number("ppo/sampling/less_likely"),
            skipped=number("ppo/policy/skipped"),
            learning_rate=number("ppo/learning_rate"),
            not_finite=", ".join(
                key for key in ALWAYS_FINITE if stats.get(key) is not None and not math.isfinite(number(key))
            ),
        )
