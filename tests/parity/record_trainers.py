"""Records what the SFT, reward, DPO and iterative trainers of release 0.7.11 compute. Used by `recorder.py` alone."""

from __future__ import annotations

from collections.abc import Callable

import trl

from tests.parity.trainer_runs import run_all


def record_trainers(write_npz: Callable[..., None]) -> None:
    """Write `trainers.npz`: each number of each run of `trainer_runs`, under `<run>/<name>`."""
    found = run_all(trl)
    write_npz("trainers.npz", {f"{run}/{name}": array for run, one in found.items() for name, array in one.items()})
    print(f"{len(found)} runs of trainers, {sum(map(len, found.values()))} arrays")
