"""Row B11: a tracker whose package is missing is an error that says what to install."""

from __future__ import annotations

import importlib.util

import pytest

from trl_step import PPOConfig


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_it_is_said_before_training(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    hidden = {"tensorboard": ("tensorboard", "tensorboardX")}.get(tracker, (tracker,))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name in hidden else find(name, *args))
    with pytest.raises(ImportError, match=f"needs the package {tracker}: pip install {tracker}"):
        PPOConfig(log_with=tracker)
    PPOConfig(log_with=None)
