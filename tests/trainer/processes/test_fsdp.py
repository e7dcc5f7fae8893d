"""FSDP2 on two CPU processes (gloo): statistics and weights are those of one process on the joined batch.

Slow, as two processes are started, and each imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.once import started_once
from tests.regressions.two_processes import CASES, Case, alone, build, launch
from tests.tiny import batch, weights
from tests.trainer.processes.sharded_processes import GREEDY, SCRIPT, SHARDED_CASES
from trl_step import AutoModelForCausalLMWithValueHead

pytestmark = pytest.mark.slow
Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started_once(tmp_path_factory, "fsdp", lambda folder: launch(folder, "fsdp2", SCRIPT))


@pytest.fixture(scope="module")
def both(folder: Path) -> Seen:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_sharded_processes_equal_one(both: Seen) -> None:
    """One test for all cases, as their processes are started once."""
    with mock.patch.dict(CASES, SHARDED_CASES):
        expected = {name: alone(name) for name in SHARDED_CASES}
    for name, truth in expected.items():
        for seen in both:
            assert seen[name]["wrapped"]["model"].startswith("FSDP")
            assert seen[name]["world"]["processes"] == 2
            for step, (own, right) in enumerate(zip(seen[name]["steps"], truth["steps"], strict=True)):
                assert own.keys() == right.keys()
                for key, value in right.items():
                    assert own[key] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), (
                        f"{name}: {key} of step {step}"
                    )
            for parameter, value in truth["weights"].items():
                torch.testing.assert_close(seen[name]["weights"][parameter], value, rtol=0, atol=1e-5, msg=parameter)


def test_the_reference_is_sharded_as_well(both: Seen) -> None:
    assert both[0]["ragged"]["wrapped"]["reference"].startswith("FSDP")


def test_sampling_gathers_once_per_call_whatever_each_process_asks_for(both: Seen) -> None:
    ours = build(Case())
    for rank, seen in enumerate(one["sampled"] for one in both):
        expected = [response.tolist() for response in ours.generate(batch(5)[0][: 2 + 3 * rank], **GREEDY)]
        assert seen["responses"] == expected
        assert seen["both"] == [expected, expected]
        assert max(map(len, expected)) == 6, "more tokens than weights are exchanged"
        assert seen["exchanges"] == seen["units"]
        assert seen["whole inside"]
        assert seen["sharded"]


def test_the_trainer_s_own_adam_keeps_its_state_sharded(both: Seen) -> None:
    one, two = (seen["own optimizer"] for seen in both)
    for seen in (one, two):
        assert seen["finite"]
        assert all(seen["moved"].values())
        assert seen["sharded states"]
        assert all(seen["sharded states"])
        assert seen["fused"]
        assert seen["ratio error"] < 1e-5
    assert all(torch.equal(one["weights"][name], two["weights"][name]) for name in one["weights"])


def test_what_was_saved_is_a_whole_checkpoint(both: Seen, folder: Path) -> None:
    saved = both[0]["own optimizer"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= set(saved["files"])
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(folder / "saved")
    found = weights(loaded)
    assert found.keys() == saved["weights"].keys()
    assert all(torch.equal(found[name], value) for name, value in saved["weights"].items())


def test_a_sharded_run_goes_on_bit_for_bit(both: Seen) -> None:
    for seen in both:
        assert seen["resumed"] == {name: (True, [], [], True) for name in ("plain", "scheduler")}
