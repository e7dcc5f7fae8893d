"""Reads the recorded numbers of release 0.7.11 (`data/`, layout in README.md) and compares a run with them.

Needs NumPy and torch only, and no other file of this folder, so any test can import it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

DATA = Path(__file__).parent / "data"

RTOL, ATOL = 1e-3, 1e-5
MOVE_UNITS = 2.0**24


# ---------------------------------------------------------------------------------------------------------------------
# what was recorded


@dataclass(frozen=True)
class StepInputs:
    """The arguments of one `step`: token ids per sample, one score per sample, masks of the responses or None."""

    queries: list[list[int]]
    responses: list[list[int]]
    scores: list[float]
    response_masks: list[list[int]] | None = None

    def tensors(self, score_dims: int = 0) -> dict[str, Any]:
        """Keyword arguments of `step`: int64 ids [Q_i], [R_i], float32 scores [] or [1], int64 masks [R_i]."""
        arguments: dict[str, Any] = {
            "queries": [torch.tensor(ids, dtype=torch.long) for ids in self.queries],
            "responses": [torch.tensor(ids, dtype=torch.long) for ids in self.responses],
            "scores": [torch.tensor([score] if score_dims else score, dtype=torch.float32) for score in self.scores],
        }
        if self.response_masks is not None:
            arguments["response_masks"] = [torch.tensor(mask, dtype=torch.long) for mask in self.response_masks]
        return arguments


@dataclass(frozen=True)
class StepResult:
    """What one step left behind.

    Attributes:
        scalars: every statistic that is a single number, by its key; those that start with `time/` left out.
        weights: the trained parameters behind the step, by recorded name, float32.
    """

    scalars: dict[str, float]
    weights: dict[str, np.ndarray]


@dataclass(frozen=True)
class Recording:
    """One recorded case.

    Attributes:
        case: what the table of cases said of it (`cases.description`).
        steps: its three steps.
        minibatches: how many mini-batches each step went through.
        skipped: how many of them release 0.7.11 skipped for their high ratio.
        sensitivity: largest difference, in units of the tolerance, that an error of one float32 rounding in the
            initial weights makes anywhere in the run.
    """

    case: dict[str, Any]
    steps: list[StepResult]
    minibatches: list[int]
    skipped: list[int]
    sensitivity: float


def load_inputs(name: str) -> list[StepInputs]:
    """The inputs of the three steps, by the name under which the table of cases knows them."""
    return [StepInputs(**step) for step in _read_json("inputs.json")[name]]


def load_weights(name: str, role: str) -> dict[str, np.ndarray]:
    """Initial weights of a shape: parameter name in transformers 4.37 -> float32 array.

    `role` is "policy" or "reference". Tied parameters stand once, under the first of their names.
    """
    layout = _read_json("weights.json")[name]
    with np.load(DATA / f"weights-{name}.npz") as arrays:
        return split_vector(arrays[role], layout)


def load_recording(name: str) -> Recording:
    """The recording of one case."""
    entry = _read_json("recording.json")[name]
    layout = _read_json("weights.json")[entry["weights"]]
    trained = {parameter: layout[parameter] for parameter in layout if parameter not in set(entry["frozen"])}
    initial = load_weights(entry["weights"], "policy")
    with np.load(DATA / f"{name}.npz") as arrays:
        vectors = unpack_moves(np.concatenate([initial[name].ravel() for name in trained]), arrays["moves"])
    steps = [
        StepResult(scalars=step["scalars"], weights=split_vector(vector, trained))
        for step, vector in zip(entry["steps"], vectors, strict=True)
    ]
    return Recording(
        case=entry["case"],
        steps=steps,
        minibatches=entry["minibatches"],
        skipped=entry["skipped"],
        sensitivity=entry["sensitivity"],
    )


@functools.cache
def _read_json(name: str) -> dict[str, Any]:
    return json.loads((DATA / name).read_text())


def pack_moves(initial: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weights [steps, N] as uint8 [4, steps, N]: the move since the step before (since `initial` [N] at the first).

    The unit is 2^-24 (6e-8, 1/150 of the tolerance), in int32, whose four bytes stand apart: the upper ones are nearly
    constant, so this compresses to two thirds of what float32 weights do.
    """
    units = np.round(np.asarray(weights - initial, dtype=np.float64) * MOVE_UNITS).astype(np.int32)
    moves = np.ascontiguousarray(np.diff(units, axis=0, prepend=0), dtype="<i4")
    return np.moveaxis(moves.view(np.uint8).reshape(*moves.shape, 4), -1, 0)


def unpack_moves(initial: np.ndarray, packed: np.ndarray) -> np.ndarray:
    """The inverse of `pack_moves`, to half a unit: float32 [steps, N]."""
    moves = np.ascontiguousarray(np.moveaxis(packed, 0, -1)).view("<i4")[..., 0]
    return (initial + np.cumsum(moves, axis=0, dtype=np.int64) / MOVE_UNITS).astype(np.float32)


def split_vector(vector: np.ndarray, layout: Mapping[str, list[int]]) -> dict[str, np.ndarray]:
    """Cut a flat vector into named arrays; `layout` gives name -> shape in the vector's order."""
    named, start = {}, 0
    for name, shape in layout.items():
        size = int(np.prod(shape))
        named[name] = vector[start : start + size].reshape(shape)
        start += size
    if start != vector.size:
        raise ValueError(f"the layout names {start} numbers, the vector holds {vector.size}")
    return named


# ---------------------------------------------------------------------------------------------------------------------
# pure functions


@dataclass(frozen=True)
class FunctionCall:
    """One recorded call of a function of release 0.7.11: tensors in, options, tensors out, each by name."""

    function: str
    inputs: dict[str, torch.Tensor]
    options: dict[str, Any]
    outputs: dict[str, torch.Tensor]


def function_names() -> list[str]:
    """The functions that `function_calls` knows."""
    return list(dict.fromkeys(entry["function"] for entry in _read_json("functions.json")["calls"]))


def function_calls(function: str) -> list[FunctionCall]:
    """The recorded calls of one function; fresh tensors at every call.

    Raises:
        KeyError: nothing was recorded under that name.
    """
    entries = [entry for entry in _read_json("functions.json")["calls"] if entry["function"] == function]
    if not entries:
        raise KeyError(f"no calls recorded for {function!r}; there are {', '.join(function_names())}")
    with np.load(DATA / "functions.npz") as arrays:

        def tensors(entry: dict[str, Any], side: str) -> dict[str, torch.Tensor]:
            return {name: torch.from_numpy(arrays[f"{entry['key']}/{side}/{name}"]) for name in entry[side]}

        return [
            FunctionCall(function, tensors(entry, "inputs"), entry["options"], tensors(entry, "outputs"))
            for entry in entries
        ]


# ---------------------------------------------------------------------------------------------------------------------
# comparing


def excess(actual: np.ndarray, recorded: np.ndarray, rtol: float = RTOL, atol: float = ATOL) -> np.ndarray:
    """|actual - recorded| in units of the tolerance `atol + rtol |recorded|`: above 1 is a difference.

    Two NaN agree, one NaN is an infinite difference.
    """
    actual, recorded = np.asarray(actual, dtype=np.float64), np.asarray(recorded, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.abs(actual - recorded) / (atol + rtol * np.abs(recorded))
    both_nan = np.isnan(actual) & np.isnan(recorded)
    return np.where(both_nan | (actual == recorded), 0.0, np.where(np.isnan(distance), np.inf, distance))


def comparisons(
    actual: StepResult, recorded: StepResult, initial: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, float, Any, Any]]:
    """Yield (key, excess, recorded number, actual number) of everything that a step must reproduce.

    Of a weight the entry with the largest excess is shown. It counts twice: its value, and how far it has moved
    from `initial`, which is much the smaller number and therefore the sharper test.
    """
    for key, value in recorded.scalars.items():
        if key in actual.scalars:
            yield key, float(excess(actual.scalars[key], value)), value, actual.scalars[key]
        else:
            yield key, np.inf, value, "missing"
    for name in recorded.weights.keys() | actual.weights.keys():
        yield from _compare_weight(name, actual.weights.get(name), recorded.weights.get(name), initial[name])


def _compare_weight(
    name: str, actual: np.ndarray | None, recorded: np.ndarray | None, initial: np.ndarray
) -> Iterator[tuple[str, float, Any, Any]]:
    if actual is None or recorded is None:
        frozen = "frozen" if recorded is None else "trained"
        yield f"weights {name}", np.inf, frozen, "trained" if recorded is None else "frozen"
        return
    yield _worst(f"weights {name}", actual, recorded)
    yield _worst(f"move of {name}", actual - initial, recorded - initial)


def _worst(key: str, actual: np.ndarray, recorded: np.ndarray) -> tuple[str, float, Any, Any]:
    if actual.shape != recorded.shape:
        return key, np.inf, f"shape {list(recorded.shape)}", f"shape {list(actual.shape)}"
    distances = excess(actual, recorded)
    index = np.unravel_index(int(np.argmax(distances)), distances.shape)
    return f"{key}{[int(i) for i in index]}", float(distances[index]), float(recorded[index]), float(actual[index])


def differences(
    case: str, actual: list[StepResult], recorded: list[StepResult], initial: Mapping[str, Any]
) -> list[str]:
    """One line for each number beyond the tolerance: case, step, key, both numbers."""
    return [
        f"{case}, step {step + 1}, {key}: recorded {recorded_value}, got {actual_value} ({beyond:.3g} x tolerance)"
        for step, (one, other) in enumerate(zip(actual, recorded, strict=True))
        for key, beyond, recorded_value, actual_value in comparisons(one, other, initial)
        if beyond > 1
    ]
