"""The numbers of a step that diagnoses are made from, and their limits, which leave a sound run alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

KL_FLOOR = -1.0
"""Nats per sample: below it one step is enough to call a KL negative."""
KL_DRIFT = -0.05
"""Nats per sample: a KL below it for `PATIENCE` steps in a row is negative, too; chance would change the sign."""
KL_AT_START = 0.05
"""Nats per sample: a reference that equals the policy is nearer than this in the first step."""
RATIO_ERROR = 0.05
"""Mean |r - 1| before any update; rounding in bfloat16 stays below it."""
ENTROPY_SHARE = 0.1
"""Of the first step's entropy: what is left below it is a collapse."""
ENTROPY_FLOOR = 0.01
"""Nats per token: below it the policy does not sample any more."""
CLIPPED_SHARE = 0.3
"""Of the tokens."""
LARGE_STEP = 0.1
"""Of `ppo/policy/approxkl`, nats per token within a step."""
HUGE_STEP = 1.0
"""The same: one step is enough."""
RUNAWAY_KL = 0.5
"""Nats per token of a response: so far from the reference the texts have little to do with it. Sound runs of the
sentiment example stay below 0.3."""
RUNAWAY_KL_OF_SAMPLE = 10.0
"""Nats per sample: short responses are left alone below it."""
FAR_KL = 0.1
"""Nats per token: so far is too far if a sample is beyond `FAR_KL_OF_SAMPLE`, too."""
FAR_KL_OF_SAMPLE = 100.0
"""Nats per sample: with it alone a KL is judged whose responses' length is not known."""
LOST_CRITIC = -3.0
"""Explained variance for `PATIENCE` steps: far below what the mean return would give."""
FALL_OF_SCORE = 2.0
"""Standard deviations of the first step's scores, by which the mean score of `FALL_PATIENCE` steps lies below it."""
FALL_PATIENCE = 5
"""Steps in a row with so low a mean score."""
PATIENCE = 10
"""Steps in a row before a sign that may pass by itself is reported."""
CRITIC_PATIENCE = 30
"""Steps in a row with an explained variance below 0; a fresh value head needs some to find the mean return."""
CLIP_PATIENCE = 3
"""Steps, among the last `CLIP_WINDOW`, with more clipped than `CLIPPED_SHARE`, steps larger than `LARGE_STEP`, a KL
above `RUNAWAY_KL`, or mini-batches that are left out."""
CLIP_WINDOW = 5
SCORE_PATIENCE = 3
"""Steps in a row with one and the same score."""
END_PATIENCE = 30
"""Steps in a row without an end token; a policy that is cut by `max_new_tokens` ends now and then."""
LOST_END_PATIENCE = 3
"""The same if responses of many lengths came from elsewhere: no limit cut them, so their ends were lost."""
SURPRISE_TOLERANCE = 0.2
"""Relative difference of the responses' surprise and the policy's entropy, if they come from different
distributions. Sound runs of the sentiment example stay below 0.07."""
SURPRISE_FLOOR = 0.1
"""Nats per token: smaller differences are left alone."""
SCORE_REACH = 1e-6
"""Weight of a sample's score at its first token; with lambda 0.95 that is a response of 270 tokens."""
MISMATCH = 0.05
"""Nats per token between the sampler's log-probs and the policy's; a server in bfloat16 stays below."""
SLOPE_TOLERANCE = 0.15
"""Of the slope of the one over the other; another temperature moves it by about as much as itself."""
UNRELATED = 0.1
"""A slope below it is that of no temperature at which anybody samples."""
TRUNCATED = 0.005
"""Nats per token: with top_p=0.95 a sampler's log-probs are up to 0.05 above the policy's, and never below."""
TRUNCATED_SHARE = 0.02
"""Of the tokens that a truncating sampler may seem to find less likely, by rounding."""
ALWAYS_FINITE = ("objective/kl", "ppo/policy/entropy", "ppo/policy/approxkl", "ppo/mean_scores", "ppo/loss/total")
"""Statistics that are NaN or infinite only in a run that is lost."""
MEMORY = max(PATIENCE, CRITIC_PATIENCE, SCORE_PATIENCE, END_PATIENCE)
"""Steps that `diagnose` looks back."""


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
