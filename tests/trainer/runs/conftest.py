"""What several tests of saved runs share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.limits import HANG
from tests.once import started_once
from tests.trainer.runs import other_process
from tests.trainer.runs.resumed_runs import ROOT


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `other_process` filled."""

    def start(folder: Path) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        threads = str(torch.get_num_threads())
        run = subprocess.run(
            [sys.executable, other_process.SCRIPT, str(folder)],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=HANG,
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]

    return started_once(tmp_path_factory, "other_process", start)
