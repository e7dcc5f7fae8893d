"""A run that is saved and goes on in a new process equals the run in one go, bit for bit.

Slow, as the first parts are played in a process of their own, which imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.runs import resumed_runs
from tests.trainer.runs.other_process import RESUMED
from tests.trainer.runs.resumed_runs import CASES, build, outcome, train
from tests.trainer.runs.state_tools import changed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, other: Path) -> None:
    case = CASES[name]
    whole = build(case)
    seen = train(whole, case)
    resumed = build(case, seed=5)  # anything that the seed decides is in the state
    assert resumed.load_state(other / RESUMED / name, may_differ=("seed",)) == case.saved_after
    rest = train(resumed, case)
    assert rest == seen[case.saved_after :]
    assert len(rest) == resumed_runs.STEPS - case.saved_after
    assert changed(outcome(whole), outcome(resumed)) == []
