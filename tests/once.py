"""What takes long to start is started once, whatever the number of test workers that ask for it."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def started_once(factory: pytest.TempPathFactory, name: str, start: Callable[[Path], object]) -> Path:
    """The folder that `start(folder)` filled; only the first of all that ask in a session calls `start`."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    files, done = folder / "files", folder / "done"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(files, ignore_errors=True)  # of a start that failed
            files.mkdir()
            start(files)
            done.touch()
    return files
