"""Two processes of `DDPOTrainer` equal one on the joined samples.

Slow, as two processes are started, and each imports torch, transformers and diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.once import started_once
from tests.regressions.two_processes import launch
from tests.trainer.diffusion.ddpo_processes import COUNT, SCRIPT, play

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:without log_with")]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = started_once(tmp_path_factory, "ddpo", lambda files: launch(files, "ddp", SCRIPT))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "prompts"])
def test_two_processes_equal_one_on_the_joined_samples(name: str, both: list[Any], tmp_path: Path) -> None:
    expected = play(tmp_path, slice(0, COUNT))[name]
    for seen in (process[name] for process in both):
        assert seen["logged"] == pytest.approx(expected["logged"], rel=1e-5, abs=1e-6)
        for own, truth in zip(seen["weights"], expected["weights"], strict=True):
            torch.testing.assert_close(own, truth, rtol=0, atol=1e-5)
        assert seen["loaded"]
    one, two = (process[name]["weights"] for process in both)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_each_process_draws_samples_of_its_own(both: list[Any]) -> None:
    assert not torch.equal(both[0]["own"], both[1]["own"])


def test_a_reward_that_fails_on_one_process_stops_both(both: list[Any]) -> None:
    assert both[1]["refused"].startswith("ValueError: reward_function failed for the prompts 'prompt 0'")
    assert both[0]["refused"].startswith("RuntimeError: process 1: ValueError: reward_function failed")
