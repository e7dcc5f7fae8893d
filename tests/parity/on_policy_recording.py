"""Reads and writes the recorded runs of on-policy trainers (`data/on_policy_*`, layout in README.md).

Needs NumPy and torch only.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.parity.recording import split_vector

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Update:
    """What a release computed between two optimizer updates of its rollouts. B rows, R positions, M micro-batches.

    Attributes:
        rollout: local variables of `train()`, by name: [B], [B, R], `context_length` []
        order: the rows of each micro-batch, int64 [M, b]
        losses: `loss`, `pg_loss`, `vf_loss` of each micro-batch [M], before the division by
            `gradient_accumulation_steps`
        steps_after: numbers of the micro-batches, from 1, after which the optimizer stepped
        log: the row of `log_history`, without `eps`
    """

    rollout: dict[str, torch.Tensor]
    order: torch.Tensor
    losses: dict[str, torch.Tensor]
    steps_after: list[int]
    log: dict[str, float]


@dataclass(frozen=True)
class OnPolicyRun:
    """A recorded run of two updates.

    Attributes:
        trainer: `ppov2`, `rloo` or `ppo`
        name: of the case in `on_policy_cases.py`
        versions: of the packages that it was recorded with
        options: every setting that is a number, a text or None, the release's defaults filled in
        sensitivity: how far one rounding in the initial weights moves a number, as a share of the tolerance
        texts: what the reward function was given, in order; empty if the reward is a model
        updates: of the two updates
        weights: the trained parameters after them; the names have `policy.` or `value_model.` before them
    """

    trainer: str
    name: str
    versions: dict[str, str]
    options: dict[str, Any]
    sensitivity: float
    texts: list[str]
    updates: list[Update]
    weights: dict[str, torch.Tensor]


def run_names(trainer: str) -> list[str]:
    """The recorded cases of a trainer, in the order of the table."""
    return list(_table(trainer)["runs"])


def recorded_run(trainer: str, name: str) -> OnPolicyRun:
    """One of them, with fresh tensors.

    Raises:
        KeyError: nothing was recorded under that name.
    """
    if name not in _table(trainer)["runs"]:
        raise KeyError(f"no run {name!r} of {trainer}; there are {', '.join(run_names(trainer))}")
    entry = _table(trainer)["runs"][name]
    arrays: dict[str, torch.Tensor] = {}
    with np.load(DATA / f"on_policy_{trainer}.npz") as file:
        for dtype, layout in _table(trainer)["layouts"][entry["layout"]].items():
            parts = split_vector(file[f"{name}/{dtype}"], layout)
            arrays |= {key: torch.from_numpy(part.copy()) for key, part in parts.items()}
    return OnPolicyRun(
        trainer=trainer,
        name=name,
        versions=dict(_table(trainer)["versions"]),
        options={**_table(trainer)["options"], **entry["options"]},
        sensitivity=entry["sensitivity"],
        texts=list(entry["texts"]),
        updates=[_update(_below(arrays, f"{number}/"), dict(row)) for number, row in enumerate(entry["log"], 1)],
        weights=_below(arrays, "weights/"),
    )


def _update(arrays: dict[str, torch.Tensor], log: dict[str, float]) -> Update:
    losses = {name: arrays.pop(name) for name in ("loss", "pg_loss", "vf_loss") if name in arrays}
    order, steps = arrays.pop("order"), arrays.pop("steps_after").tolist()
    return Update(rollout=arrays, order=order, losses=losses, steps_after=steps, log=log)


def _below(arrays: Mapping[str, torch.Tensor], start: str) -> dict[str, torch.Tensor]:
    return {key[len(start) :]: array for key, array in arrays.items() if key.startswith(start)}


@functools.cache
def _table(trainer: str) -> dict[str, Any]:
    return json.loads((DATA / f"on_policy_{trainer}.json").read_text())


def write(folder: Path, trainer: str, versions: Mapping[str, str], runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what `on_policy_recorder.run` gave of each case.

    The arrays of a run stand one after the other in one vector per dtype; what runs share (layouts, settings) is
    written once.
    """
    first = next(iter(runs.values()))["options"]
    shared = {key: value for key, value in first.items() if all(one["options"][key] == value for one in runs.values())}
    vectors: dict[str, np.ndarray] = {}
    layouts: list[dict[str, dict[str, list[int]]]] = []
    table: dict[str, Any] = {}
    for name, one in runs.items():
        layout: dict[str, dict[str, list[int]]] = {}
        for dtype in ("float32", "int64"):
            arrays = {key: array for key, array in one["arrays"].items() if array.dtype == dtype}
            layout[dtype] = {key: list(array.shape) for key, array in arrays.items()}
            vectors[f"{name}/{dtype}"] = np.concatenate([array.ravel() for array in arrays.values()])
        if layout not in layouts:
            layouts.append(layout)
        own = {key: value for key, value in one["options"].items() if key not in shared}
        entry = {key: one[key] for key in ("sensitivity", "texts", "log")}
        table[name] = {"options": own, "layout": layouts.index(layout), **entry}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
    head = f'{{"versions": {json.dumps(dict(versions))},\n "options": {json.dumps(shared)}'
    text = f'{head},\n "layouts": {json.dumps(layouts)},\n "runs": {{\n{lines}\n}}}}\n'
    (folder / f"on_policy_{trainer}.json").write_text(text)
    np.savez_compressed(folder / f"on_policy_{trainer}.npz", **vectors)
