"""Reads and writes the recorded group algorithms (`data/group_*`, layout in README.md).

Needs NumPy and torch only, and no other file of this folder, so any test can import it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

DATA = Path(__file__).parent / "data"

Trainer = Literal["rloo", "grpo"]


@dataclass(frozen=True)
class GroupCase:
    """What a release computed of fixed inputs under given settings. Fresh tensors, [B] or [B, T].

    Attributes:
        trainer: `rloo` (`RLOOTrainer` of TRL 0.15.2) or `grpo` (`GRPOTrainer` of TRL 1.16)
        name: of the case
        versions: of the packages that it was recorded with
        options: settings of that trainer, the release's defaults filled in
        inputs: `groups`, `mask`, `holes` int64; `scores`, `logprobs`, `old_logprobs`, `ref_logprobs`,
            `sampling_logprobs`, `entropies` float32
        loss: of the whole batch; with gradient accumulation, the sum of what its parts add
        outputs: `advantages` [B]; `grad_logprobs` [B, T], of the loss by `logprobs`; the others by README.md
    """

    trainer: Trainer
    name: str
    versions: dict[str, str]
    options: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    loss: float
    outputs: dict[str, torch.Tensor]


def group_cases(trainer: Trainer) -> Iterator[GroupCase]:
    """The recorded cases of one trainer, in the order of the table."""
    table = _table(trainer)
    with np.load(DATA / f"group_{trainer}.npz") as arrays:
        for name, entry in table["cases"].items():
            inputs, outputs = (
                {key.rpartition("/")[2]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith(start)}
                for start in (f"inputs/{entry['drawn']}/", f"{name}/")
            )
            yield GroupCase(
                trainer, name, dict(table["versions"]), dict(entry["options"]), inputs, entry["loss"], outputs
            )


def case_names(trainer: Trainer) -> list[str]:
    """Their names."""
    return list(_table(trainer)["cases"])


def group_case(trainer: Trainer, name: str) -> GroupCase:
    """One of them.

    Raises:
        KeyError: nothing was recorded under that name.
    """
    for case in group_cases(trainer):
        if case.name == name:
            return case
    raise KeyError(f"no case {name!r} of {trainer}; there are {', '.join(case_names(trainer))}")


@functools.cache
def _table(trainer: Trainer) -> dict[str, Any]:
    return json.loads((DATA / f"group_{trainer}.json").read_text())


def write(
    folder: Path,
    trainer: Trainer,
    versions: Mapping[str, str],
    cases: Mapping[str, tuple[str, Mapping[str, Any]]],
    inputs: Mapping[str, Mapping[str, np.ndarray]],
    run: Callable[[Mapping[str, np.ndarray], Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    """Run every case and write what came out.

    Args:
        folder: of the files
        versions: package -> version that it was recorded with
        cases: name -> (name of the inputs, settings)
        inputs: name -> arrays
        run: (arrays, settings) -> `options` (settings with their defaults), `loss`, `outputs`
    """
    arrays: dict[str, np.ndarray] = {}
    table: dict[str, Any] = {}
    for name, (drawn, settings) in cases.items():
        arrays |= {f"inputs/{drawn}/{key}": array for key, array in inputs[drawn].items()}
        result = run(inputs[drawn], settings)
        arrays |= {f"{name}/{key}": array for key, array in result["outputs"].items()}
        table[name] = {"drawn": drawn, "options": result["options"], "loss": result["loss"]}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
    text = f'{{"versions": {json.dumps(dict(versions))},\n "cases": {{\n{lines}\n}}}}\n'
    (folder / f"group_{trainer}.json").write_text(text)
    np.savez_compressed(folder / f"group_{trainer}.npz", **arrays)
