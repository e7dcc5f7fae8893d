"""A run that is saved and goes on in a new process equals the run in one go, bit for bit.

Slow, as the first parts are played in a process of their own, which imports torch and transformers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.limits import HANG
from tests.trainer.runs import resumed_runs
from tests.trainer.runs.resumed_runs import CASES, ROOT, build, outcome, train
from tests.trainer.runs.state_tools import changed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states of all cases, written by another process."""
    folder = tmp_path_factory.mktemp("saved")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(torch.get_num_threads())
    subprocess.run(
        [sys.executable, resumed_runs.__file__, str(folder)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        check=True,
        timeout=HANG,
    )
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_resumed_run_is_the_uninterrupted_one(name: str, saved: Path) -> None:
    case = CASES[name]
    whole = build(case)
    seen = train(whole, case)
    resumed = build(case, seed=5)  # anything that the seed decides is in the state
    assert resumed.load_state(saved / name, may_differ=("seed",)) == case.saved_after
    rest = train(resumed, case)
    assert rest == seen[case.saved_after :]
    assert len(rest) == resumed_runs.STEPS - case.saved_after
    assert changed(outcome(whole), outcome(resumed)) == []
