from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.hub_tools import Hub


@pytest.fixture(autouse=True)
def pythons_own_interrupt() -> Iterator[None]:
    """Each test begins with Python's handler: a trainer of another test that still lives may have left its own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", stand_in)
    return stand_in
