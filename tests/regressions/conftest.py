"""What several regression tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.once import started_once
from tests.regressions.two_processes import launch


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each of two processes saw."""
    folder = started_once(tmp_path_factory, "two_processes", lambda folder: launch(folder, "ddp"))
    one, two = (torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2))
    return one, two
