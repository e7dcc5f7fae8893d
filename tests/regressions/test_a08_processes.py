"""Row A8: two processes equal one process on the joined batch.

Slow, as two processes are started, and each imports torch and transformers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.regressions.two_processes import CASES, alone

pytestmark = pytest.mark.slow
Seen = tuple[dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one_on_the_joined_batch(name: str, two_processes: Seen) -> None:
    expected, both = alone(name), [seen[name] for seen in two_processes]
    for seen in both:
        for step, (own, truth) in enumerate(zip(seen["steps"], expected["steps"], strict=True)):
            assert own.keys() == truth.keys()
            for key, value in truth.items():
                assert own[key] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), f"{key} of step {step}"
        for parameter, value in expected["weights"].items():
            torch.testing.assert_close(seen["weights"][parameter], value, rtol=0, atol=1e-5, msg=parameter)
        assert seen["early stop"] == pytest.approx(expected["early stop"], rel=1e-4, abs=1e-9)
    one, two = (seen["weights"] for seen in both)
    assert all(torch.equal(one[parameter], two[parameter]) for parameter in one)


def test_the_cases_are_what_they_say(two_processes: Seen) -> None:
    """Some of them would prove nothing if the thing they are about did not happen."""
    seen = {name: case["steps"] for name, case in two_processes[0].items() if name in CASES}
    assert 0 < seen["skip"][0]["ppo/policy/skipped"] < 12
    assert seen["all skipped"][0]["ppo/policy/skipped"] == 2
    assert two_processes[0]["early stop"]["early stop"][0] != 0
    assert seen["ragged"][0]["lr"] < 0.05
    assert seen["scaling"][1]["kl_ctl"] != pytest.approx(0.2)
    assert seen["scaling"][1]["running/count"] == 18


def test_a_bad_input_on_one_process_stops_both_before_any_update(two_processes: Seen) -> None:
    one, two = (seen["refused"] for seen in two_processes)
    assert one["told"].startswith("RuntimeError: another process refused")
    assert two["told"].startswith("ValueError: responses[2] is empty")
    assert one["untouched"]
    assert two["untouched"]
    assert one["stats"]["ppo/mean_scores"] == two["stats"]["ppo/mean_scores"]


def test_what_is_logged_and_saved_is_of_both(two_processes: Seen) -> None:
    one, two = (seen["logged"] for seen in two_processes)
    assert one["logged"][0]["env/reward_mean"] == pytest.approx(3 / 5)
    assert two["logged"] == []
    assert "model.safetensors" in one["files"]
    for key in ("ppo/mean_scores", "objective/kl", "ppo/loss/total", "ppo/returns/mean"):
        assert one["stats"][key] == two["stats"][key], key
    assert one["stats"]["ppo/mean_scores"] == pytest.approx(3 / 5)
    assert (len(one["pushes"]), len(two["pushes"])) == (1, 0), "a push that fails on one must not hold up the other"
