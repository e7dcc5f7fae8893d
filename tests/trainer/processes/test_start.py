"""What a trainer fills into its configuration when it knows its processes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.tiny import config
from trl_step.trainer.processes import accelerate_state


@pytest.mark.parametrize(("processes", "steps"), [(1, 25), (2, 13), (4, 7)])
def test_steps_are_samples_of_all_processes(processes: int, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    known = SimpleNamespace(num_processes=processes, device=torch.device("cpu"))
    monkeypatch.setattr(accelerate_state, "make_accelerator", lambda *_: known)
    settings = config(steps=100, batch_size=4, mini_batch_size=4)
    accelerate_state.start_accelerator(settings)
    assert settings.total_ppo_epochs == steps
    assert settings.global_batch_size == 4 * processes
