"""The recording proves something: it fits the table of cases, and an option that changes the algorithm shows in it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.cases import CASES, SHAPES, STEPS, description
from tests.parity.recording import (
    DATA,
    differences,
    load_inputs,
    load_recording,
    load_weights,
    pack_moves,
    unpack_moves,
)

NAMES = list(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_case_is_recorded_as_the_table_says(name: str) -> None:
    recorded = load_recording(name)
    assert recorded.case == description(CASES[name]), f"{name} changed behind the recording: run tests/parity/record.py"
    assert len(recorded.steps) == len(load_inputs(CASES[name].inputs)) == STEPS


@pytest.mark.parametrize("name", NAMES)
def test_weights_move_far_beyond_the_tolerance(name: str) -> None:
    recorded = load_recording(name)
    initial = load_weights(SHAPES[CASES[name].shape].weights, "policy")
    before = initial
    for step in recorded.steps:
        moved = max(float(np.abs(step.weights[key] - before[key]).max()) for key in step.weights)
        assert moved > 1e-3, f"{name}: the largest move of a step is {moved}"
        before = {**before, **step.weights}


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].compare_to])
def test_option_shows_in_the_numbers(name: str) -> None:
    case = CASES[name]
    shape = SHAPES[case.shape]
    plain = load_recording(case.compare_to or "")
    found = differences(name, load_recording(name).steps, plain.steps, load_weights(shape.weights, "policy"))
    if case.equal:
        assert not found, "\n".join(found)
    else:
        assert found, f"{name} has the numbers of {case.compare_to}: it cannot tell whether the option works"


@pytest.mark.parametrize("name", [name for name in NAMES if "ratio_threshold" in CASES[name].config])
def test_some_minibatches_are_skipped_and_some_are_not(name: str) -> None:
    recorded = load_recording(name)
    assert 0 < sum(recorded.skipped) < sum(recorded.minibatches)


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].config.get("early_stopping")])
def test_some_step_stops_early(name: str) -> None:
    config = CASES[name].ppo_config
    full = config["ppo_epochs"] * config["batch_size"] // config["mini_batch_size"]
    assert min(load_recording(name).minibatches) < full


def test_packed_moves_round_trip() -> None:
    random = np.random.default_rng(0)
    initial = random.normal(size=100).astype(np.float32)
    weights = (initial + np.cumsum(random.normal(size=(3, 100), scale=0.01), axis=0)).astype(np.float32)
    np.testing.assert_allclose(unpack_moves(initial, pack_moves(initial, weights)), weights, rtol=0, atol=2e-7)


def test_recording_stays_small() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 7e6
