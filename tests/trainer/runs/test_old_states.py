"""States that earlier versions wrote load, and what they knew is written today as they wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny import weights
from tests.trainer.runs.old_states import STATE, STEPS, build, play
from trl_step.algorithms.diagnosis.signs import Signs

pytestmark = pytest.mark.filterwarnings("ignore:the state was saved with")


def files(folder: Path) -> dict[str, Any]:
    """The files of a state; without the versions of packages and the formatting of JSON."""
    (data,) = folder.glob("data-*")
    found: dict[str, Any] = {}
    for path in data.iterdir():
        found[path.name] = json.loads(path.read_text()) if path.suffix == ".json" else path.read_bytes()
    del found["run.json"]["packages"]
    return found


def test_an_old_state_is_taken_over_and_written_again(tmp_path: Path) -> None:
    ours = build()
    assert ours.load_state(STATE) == STEPS
    ours.save_state(tmp_path)
    old, new = files(STATE), files(tmp_path)
    assert sorted(new) == sorted(old)
    # settings that came later are new, and so are statistics that the doctor looks at
    known = set(old["identity.json"]["settings"])
    settings = new["identity.json"]["settings"]
    assert {"advantage_estimator", "policy_loss"} <= set(settings) - known
    new["identity.json"]["settings"] = {name: value for name, value in settings.items() if name in known}
    for state in (old, new):
        for signs in signs_of(state["run.json"]):
            del signs[len(KNOWN_SIGNS) :]
    assert [name for name in old if old[name] != new[name]] == []


KNOWN_SIGNS = Signs._fields[:10]
"""Those of the first version."""


def signs_of(run: Any) -> list[list[Any]]:
    """The numbers of the steps that the doctor remembers, wherever they are in the tree."""
    if isinstance(run, dict):
        return [signs for value in run.values() for signs in signs_of(value)]
    if isinstance(run, list):
        if len(run) >= len(KNOWN_SIGNS) and all(isinstance(x, (int, float, str, dict)) for x in run):
            return [run]
        return [signs for value in run for signs in signs_of(value)]
    return []


def test_a_run_goes_on_from_an_old_state_as_it_would_have_without_a_break() -> None:
    whole, ours = build(), build()
    whole._budget.most_samples = 3
    rows = [batch for _ in range(2) for batch in play(whole, whole.dataloader)]
    assert ours.load_state(STATE) == STEPS
    assert play(ours, ours.dataloader) == rows[STEPS:]
    assert ours.kl_ctl.value == pytest.approx(whole.kl_ctl.value)
    assert ours.running.state_dict() == pytest.approx(whole.running.state_dict())
    assert ours.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(weights(ours.model)[name], weight)
