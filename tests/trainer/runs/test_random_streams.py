"""Every stream goes on where it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from tests import tiny
from tests.trainer.runs.state_tools import changed, weights_and_optimizer
from trl_step.trainer.runs import random_streams
from trl_step.trainer.runs.codec import read_tree, write_tree

DEVICES = ("cpu", "cuda")


def draw() -> list[float]:
    return [random.gauss(0, 1), float(np.random.randn()), float(torch.randn(()))]


def test_all_streams_go_on_after_a_file(tmp_path: Path) -> None:
    draw()  # leaves the second number of a pair behind, in Python's stream and in NumPy's
    write_tree(tmp_path, "streams", random_streams.capture())
    expected = [draw() for _ in range(3)]
    random_streams.restore(read_tree(tmp_path, "streams"))
    assert [draw() for _ in range(3)] == expected


class Devices:
    """Stands in for `torch.cuda` with some devices, as far as streams go; the process works on the last one."""

    def __init__(self, count: int) -> None:
        self.generators = [torch.Generator().manual_seed(7 + i) for i in range(count)]

    def get_rng_state(self, index: int = -1) -> torch.Tensor:
        return self.generators[index].get_state()

    def set_rng_state(self, state: torch.Tensor, index: int = -1) -> None:
        self.generators[index].set_state(state)

    def draw(self) -> list[float]:
        return [float(torch.randn((), generator=generator)) for generator in self.generators]


@contextmanager
def machine(devices: Devices | None) -> Iterator[None]:
    count = 0 if devices is None else len(devices.generators)
    with (
        mock.patch.object(random_streams, "_device_module", return_value=devices),
        mock.patch.object(torch.accelerator, "device_count", return_value=count),
        mock.patch.object(torch.accelerator, "current_device_index", return_value=count - 1),
    ):
        yield


@pytest.mark.parametrize("count", [1, 3])
def test_the_streams_of_all_devices(count: int, tmp_path: Path) -> None:
    devices = Devices(count)
    devices.draw()
    with machine(devices):
        write_tree(tmp_path, "streams", random_streams.capture())
        expected = devices.draw()
        devices.draw()
        random_streams.restore(read_tree(tmp_path, "streams"))
    assert devices.draw() == expected


def test_the_own_device_goes_on_where_others_are_gone(tmp_path: Path) -> None:
    three, one = Devices(3), Devices(1)
    with machine(three):
        write_tree(tmp_path, "streams", random_streams.capture())
    with machine(one):
        random_streams.restore(read_tree(tmp_path, "streams"))
    assert one.draw() == three.draw()[-1:]


def test_a_state_from_before_other_devices_were_in_it() -> None:
    devices, fresh = Devices(2), Devices(2)
    with machine(devices):
        streams = random_streams.capture()
        del streams["other devices"]
        devices.draw()
        random_streams.restore(streams)
    moved, own = devices.draw()
    first = fresh.draw()
    assert own == first[1]
    assert moved == fresh.draw()[0]


@pytest.mark.parametrize("saved_on", [0, 1])
def test_a_state_moves_between_machines_with_and_without_devices(saved_on: int, tmp_path: Path) -> None:
    machines = [None, Devices(2)]
    one, other = (tiny.trainer() for _ in range(2))
    one.step(*tiny.batch())
    with machine(machines[saved_on]), mock.patch.object(one._processes, "device", torch.device(DEVICES[saved_on])):
        one.save_state(tmp_path)
    expected = draw()
    with (
        machine(machines[1 - saved_on]),
        mock.patch.object(other._processes, "device", torch.device(DEVICES[1 - saved_on])),
    ):
        message = f"saved on {DEVICES[saved_on]}, and the run goes on on {DEVICES[1 - saved_on]}: what is drawn there"
        with pytest.warns(UserWarning, match=message):
            assert other.load_state(tmp_path) == 1
    assert draw() == expected
    assert changed(weights_and_optimizer(one), weights_and_optimizer(other)) == []
