"""Metrics that a `DPOTrainer` stored for its batches, as means over all processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator

ROWS = "rows"
"""Beside the metrics of an evaluated batch: how many rows it has."""


def means_over_batches(stored: Mapping[str, Sequence[Any]], accelerator: Accelerator) -> dict[str, float]:
    """The mean of each metric over the batches, on all processes; every process calls it.

    Args:
        stored: by metric, a number or 0-d tensor for each batch.
    """
    if not stored:
        return {}
    means = torch.stack([_float32(values, accelerator).mean() for values in stored.values()])
    return dict(zip(stored, accelerator.reduce(means, "mean").tolist(), strict=True))


def means_over_rows(stored: Mapping[str, Sequence[Any]], accelerator: Accelerator) -> dict[str, float]:
    """The same over the rows: each batch is weighted by how many it has.

    Args:
        stored: as in `means_over_batches`, with `ROWS`.
    """
    metrics = {name: values for name, values in stored.items() if name != ROWS}
    if not metrics:
        return {}
    batches = max(map(len, metrics.values()))
    # a `prediction_step` of release 0.7 in a subclass does not store how many rows a batch has
    weights = _float32(stored.get(ROWS, [1] * batches), accelerator)
    sums = [(_float32(values, accelerator) * weights).sum() for values in metrics.values()]
    *totals, count = accelerator.reduce(torch.stack([*sums, weights.sum()]), "sum").tolist()
    return {name: total / count for name, total in zip(metrics, totals, strict=True)}


def _float32(values: Sequence[Any], accelerator: Accelerator) -> torch.Tensor:
    """[batches]"""
    return torch.stack([torch.as_tensor(value, dtype=torch.float32, device=accelerator.device) for value in values])
