"""Every stream goes on where it was."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trl_step.trainer import random_streams
from trl_step.trainer.state_codec import read_tree, write_tree


def draw() -> list[float]:
    return [random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))]


def test_all_streams_go_on_behind_a_file(tmp_path: Path) -> None:
    draw()  # leaves the second number of a pair behind, in Python's stream and in NumPy's
    write_tree(tmp_path, "streams", random_streams.capture())
    expected = [draw() for _ in range(3)]
    random_streams.restore(read_tree(tmp_path, "streams"))
    assert [draw() for _ in range(3)] == expected


class Device:
    """Stands in for `torch.cuda`, as far as streams go."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def get_rng_state(self) -> torch.Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.generator.set_state(state)


def test_the_device_s_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device: Any = Device()
    monkeypatch.setattr(random_streams, "_device_module", lambda: device)
    write_tree(tmp_path, "streams", random_streams.capture())
    expected = torch.randn(3, generator=device.generator)
    random_streams.restore(read_tree(tmp_path, "streams"))
    assert torch.equal(torch.randn(3, generator=device.generator), expected)


def test_a_state_of_a_device_is_taken_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(random_streams, "_device_module", Device)
        streams = random_streams.capture()
    expected = draw()
    monkeypatch.setattr(random_streams, "_device_module", lambda: None)
    random_streams.restore(streams)
    assert draw() == expected
