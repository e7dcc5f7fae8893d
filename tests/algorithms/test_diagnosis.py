"""The rules of the doctor on plain numbers: where each begins to speak, and where it stays silent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trl_step.algorithms.diagnosis.checkup import Checkup, diagnose
from trl_step.algorithms.diagnosis.findings import PATIENCE, Circumstances
from trl_step.algorithms.diagnosis.of_responses import END_PATIENCE
from trl_step.algorithms.diagnosis.of_training import CRITIC_PATIENCE, FALL_PATIENCE
from trl_step.algorithms.diagnosis.signs import Signs

HEALTHY = Signs(
    kl=3.0,
    surprise=2.0,
    entropy=2.1,
    ratio_error=1e-6,
    clipped=0.1,
    explained=0.3,
    mean_score=1.0,
    std_score=0.5,
    ended=0.9,
    length_deviation=4.0,
    length=20.0,
    approxkl=0.01,
)
START = HEALTHY._replace(kl=0.0)


def names(now: dict[str, Any], steps: int = 1, seen: Circumstances | None = None) -> list[str]:
    recent = [HEALTHY._replace(**now)] * steps
    return [d.name for d in diagnose(START, recent, *([seen] if seen else []))]


def test_healthy_numbers_are_left_alone() -> None:
    assert names({}, steps=40) == []


@pytest.mark.parametrize(
    ("sign", "quiet", "loud", "steps", "name"),
    [
        ("kl", -1.0, -1.01, 1, "negative KL"),
        ("kl", -0.05, -0.06, PATIENCE, "negative KL"),
        ("ratio_error", 0.05, 0.051, 1, "first ratio"),
        ("entropy", 0.22, 0.2, 1, "entropy collapse"),
        ("explained", 0.0, -0.01, CRITIC_PATIENCE, "value head"),
        ("std_score", 0.01, 0.0, 3, "constant scores"),
        ("ended", 0.01, 0.0, END_PATIENCE, "no end token"),
        ("clipped", 0.3, 0.31, 3, "clipping"),
        ("approxkl", 0.1, 0.11, 3, "large steps"),
        ("explained", -3.0, -3.1, PATIENCE, "value head"),
        ("kl", 10.0, 10.1, 3, "runaway KL"),
        ("kl", 100.0, 100.1, 3, "runaway KL"),
        ("approxkl", 0.1, 1.01, 1, "large steps"),
        ("skipped", 0.0, 1.0, 3, "skipped"),
        ("learning_rate", 1e-9, 0.0, PATIENCE, "learning rate"),
        ("surprise", 1.69, 1.67, PATIENCE, "another distribution"),
        ("surprise", 2.51, 2.53, PATIENCE, "another distribution"),
        ("mean_score", 0.0, -0.01, FALL_PATIENCE, "falling score"),
    ],
)
def test_where_a_diagnosis_begins(sign: str, quiet: float, loud: float, steps: int, name: str) -> None:
    length = {"length": 500.0} if quiet == 100.0 else {}
    assert names({sign: quiet, **length}, steps) == []
    assert names({sign: loud, **length}, steps) == [name]
    if steps > 1:
        assert names({sign: loud, **length}, steps - 1) == []


@pytest.mark.parametrize(("sign", "loud"), [("clipped", 0.5), ("approxkl", 0.5), ("kl", 99.0), ("skipped", 1.0)])
def test_three_bad_steps_of_five_are_enough(sign: str, loud: float) -> None:
    bad = HEALTHY._replace(**{sign: loud})
    assert diagnose(START, [bad, HEALTHY, bad, HEALTHY, HEALTHY, bad]) == []
    (found,) = diagnose(START, [bad, HEALTHY, bad, HEALTHY, bad])
    assert found.name in ("clipping", "large steps", "runaway KL", "skipped")


def test_responses_of_another_distribution_are_named_once() -> None:
    greedy = {"surprise": 0.2}
    assert names({**greedy, "kl": -0.06}, PATIENCE) == ["negative KL"]
    for known in ({"sampling_settings": ("top_k=5",)}, {"likeliest": ("do_sample=False",)}, {"given_logprobs": True}):
        assert "another distribution" not in names(greedy, PATIENCE, OUTSIDE._replace(**known))
    assert "another distribution" not in names({**greedy, "mismatch": 0.0, "mismatch_slope": 1.0}, PATIENCE)
    recent = [HEALTHY._replace(surprise=1.0 + 2.0 * (step % 2)) for step in range(PATIENCE)]
    assert diagnose(START, recent) == []


def test_one_good_step_in_between_starts_the_count_anew() -> None:
    bad = HEALTHY._replace(explained=-0.5)
    assert not diagnose(START, [*[bad] * (CRITIC_PATIENCE - 1), HEALTHY, bad])


def test_batches_with_one_score_each_but_different_ones_are_not_constant() -> None:
    recent = [HEALTHY._replace(mean_score=float(i), std_score=0.0) for i in range(5)]
    assert not diagnose(START, recent)


def test_an_entropy_near_0_is_a_collapse_whatever_it_was() -> None:
    assert [d.name for d in diagnose(START._replace(entropy=0.02), [HEALTHY._replace(entropy=0.009)])] == [
        "entropy collapse"
    ]


OUTSIDE = Circumstances(known=True)
FLATTER, SHARPER = {"kl": -3.0, "surprise": 4.0}, {"kl": -3.0, "surprise": 1.0}


@pytest.mark.parametrize(
    ("first_kl", "now", "seen", "cause"),
    [
        (2.0, FLATTER, OUTSIDE._replace(dropout=0.1), "reference: before any update the KL was 2.00"),
        (-2.0, {"kl": -2.0}, OUTSIDE, "reference: "),
        (0.0, SHARPER, OUTSIDE._replace(sampled_by_trainer=True, sampling_settings=("top_k=5",)), "temperature or"),
        (0.0, FLATTER, OUTSIDE._replace(dropout=0.1, pads_right=True), "dropout in sampling"),
        (0.0, FLATTER, OUTSIDE._replace(pads_right=True), "padding side"),
        (0.0, FLATTER, OUTSIDE._replace(pads_right=True, dropout=0.1, sampled_by_trainer=True), "another distribution"),
        (0.0, SHARPER, OUTSIDE._replace(pads_right=True, dropout=0.1), "temperature or truncation"),
        (0.0, FLATTER, Circumstances(), "another distribution in sampling"),
        (0.0, {"kl": -3.0}, Circumstances(), "look for settings of generate"),
        (0.0, {"kl": -3.0, "surprise": math.nan}, Circumstances(), "look for settings of generate"),
    ],
)
def test_the_causes_of_a_negative_kl_are_told_apart(
    first_kl: float, now: dict[str, float], seen: Circumstances, cause: str
) -> None:
    *_, diagnosis = diagnose(START._replace(kl=first_kl), [HEALTHY._replace(**now)], seen)
    assert diagnosis.name == "negative KL"
    assert diagnosis.advice.startswith(cause)
    assert f"{now['kl']:.2f} nats" in diagnosis.finding


def test_ends_that_were_lost_are_told_soon_unless_the_trainer_sampled() -> None:
    assert names({"ended": 0.0}, 3, OUTSIDE) == ["no end token"]
    assert names({"ended": 0.0}, 2, OUTSIDE) == []
    assert names({"ended": 0.0, "length_deviation": 0.0}, 3, OUTSIDE) == []
    assert names({"ended": 0.0}, 3, OUTSIDE._replace(sampled_by_trainer=True)) == []
    assert names({"ended": 0.0}, END_PATIENCE, OUTSIDE._replace(given_masks=True)) == []
    (diagnosis,) = diagnose(START, [HEALTHY._replace(ended=0.0)] * 3, OUTSIDE._replace(end_tokens=(1, 7)))
    assert "end-of-sequence token (1, 7)" in diagnosis.finding


def test_a_score_that_does_not_reach_the_beginning_is_told() -> None:
    def found(lam: float | None, length: float) -> list[str]:
        return names({"length": length}, seen=OUTSIDE._replace(lam=lam))

    assert found(0.95, 1000.0) == ["score reach"]
    assert found(0.95, 271.0) == ["score reach"]  # 0.95^270 = 9.7e-7
    assert found(0.95, 270.0) == []
    assert found(1.0, 1000.0) == found(None, 1000.0) == found(0.95, math.nan) == []
    (diagnosis,) = diagnose(START, [HEALTHY._replace(length=1000.0)], OUTSIDE._replace(lam=0.95))
    assert "1000 tokens reaches its first token with weight 6e-23" in diagnosis.finding


def test_a_kl_of_long_responses_is_taken_per_token() -> None:
    assert names({"kl": 60.0, "length": 200.0}, 3) == []
    assert names({"kl": 120.0, "length": 200.0}, 3) == ["runaway KL"]
    assert names({"kl": 120.0, "length": math.nan}, 3) == ["runaway KL"]
    assert names({"kl": 99.0, "length": math.nan}, 3) == []
    assert names({"kl": 120.0, "length": 500.0}, 3) == ["runaway KL"]
    assert names({"kl": 120.0, "length": 1300.0}, 3) == []


def test_what_was_given_comes_first() -> None:
    seen = OUTSIDE._replace(repeats_query=True, likeliest=("do_sample=False",))
    assert names({"kl": -2.0}, seen=seen) == ["query in response", "greedy sampling", "negative KL"]


def test_answers_of_older_weights_are_reported() -> None:
    seen = OUTSIDE._replace(updates_behind=2)
    assert names({"kl": 0.0}, seen=seen) == ["old weights"]
    assert names({"kl": 0.0}, seen=OUTSIDE) == []


def test_a_checkup_tells_each_thing_once_and_remembers_the_step() -> None:
    checkup = Checkup()
    healthy = {"objective/kl": 0.0, "ppo/policy/entropy": 2.0, "ppo/policy/clipfrac": 0.1}
    assert checkup.look(healthy) == []
    assert [d.name for d in checkup.look({**healthy, "ppo/policy/entropy": 0.1})] == ["entropy collapse"]
    both = {**healthy, "ppo/policy/entropy": 0.1, "objective/kl": -9.0}
    assert [d.name for d in checkup.look(both)] == ["negative KL"]
    assert checkup.look(both) == []
    assert [(f.step, f.diagnosis.name) for f in checkup.findings] == [(2, "entropy collapse"), (3, "negative KL")]
    assert str(checkup.findings[0]).startswith("step 2: the policy's entropy fell to 0.100 nats per token, from 2.000")


def test_statistics_without_the_keys_say_nothing() -> None:
    assert all(sign == "" or math.isnan(sign) for sign in Signs.of({}))
    checkup = Checkup()
    for _ in range(50):
        checkup.look({"mine": 1.0})
    assert checkup.findings == []


@pytest.mark.parametrize(("slope", "told"), [(0.7, "another temperature"), (-0.1, "shifted by a token")])
def test_log_probs_that_do_not_follow_the_policy_are_no_matter_of_temperature(slope: float, told: str) -> None:
    stats = {"ppo/sampling/kl": -0.3, "ppo/sampling/slope": slope, "ppo/sampling/less_likely": 0.5}
    (found,) = Checkup().look(stats)
    assert told in found.advice
