"""What several regression tests share."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.regressions.two_processes import launch


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two processes saw. They are started once, whatever the number of test workers."""
    base = tmp_path_factory.getbasetemp()
    folder: Path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "two_processes"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "1.pt").exists():
            launch(folder, "ddp")
    one, two = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return one, two
