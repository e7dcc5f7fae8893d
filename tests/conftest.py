from __future__ import annotations

import pytest

from tests.cpu import stay_on_the_cpu
from tests.hub_tools import Hub
from trl_step.models import policy

stay_on_the_cpu()


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning that is given once in a process is given in every test."""
    monkeypatch.setattr(policy, "SAID_WITHOUT_HEAD", set())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", stand_in)
    return stand_in
