"""A save that is killed at any moment leaves the last complete state, and that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainer.runs import killed_saves
from tests.trainer.runs.other_process import KILLED


@pytest.mark.slow
def test_twenty_saves_that_are_killed(other: Path) -> None:
    """Slow, as a process of its own is started, which imports torch and transformers."""
    outcomes = json.loads((other / KILLED / killed_saves.OUTCOMES).read_text())
    assert [outcome["wrong"] for outcome in outcomes.values()] == [[], []]
    assert sum(outcome["cut off"] for outcome in outcomes.values()) == killed_saves.KILLS, "kills that came late"
    assert sum(outcome["left behind"] for outcome in outcomes.values()) > 2, "no kill came between two files"
