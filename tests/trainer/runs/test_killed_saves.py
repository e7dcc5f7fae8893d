"""A save that is killed at any moment leaves the last complete state, and that loads.

Slow, as a process of its own is started, which imports torch and transformers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.trainer.runs import killed_saves
from tests.trainer.runs.resumed_runs import ROOT


@pytest.mark.slow
def test_twenty_saves_that_are_killed(tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, killed_saves.__file__, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    outcomes = json.loads(run.stdout.splitlines()[-1])
    assert [outcome["wrong"] for outcome in outcomes.values()] == [[], []]
    assert sum(outcome["cut off"] for outcome in outcomes.values()) == killed_saves.KILLS, "kills that came late"
    assert sum(outcome["left behind"] for outcome in outcomes.values()) > 2, "no kill came between two files"
