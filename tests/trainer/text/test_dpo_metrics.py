"""The means of stored metrics, by hand."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from trl_step.trainer.text.dpo_metrics import ROWS, means_over_batches, means_over_rows

STORED = {"margins": [torch.tensor(1.0), torch.tensor(3.0)], "accuracies": [0.5, 1.0]}


def test_means_over_batches_and_over_rows() -> None:
    accelerator = Accelerator(cpu=True)
    assert means_over_batches(STORED, accelerator) == {"margins": 2.0, "accuracies": 0.75}
    # (1 * 1 + 3 * 3) / 4 and (1 * 0.5 + 3 * 1) / 4
    assert means_over_rows({**STORED, ROWS: [1, 3]}, accelerator) == {"margins": 2.5, "accuracies": 0.875}
    assert means_over_batches({}, accelerator) == means_over_rows({}, accelerator) == {}


def test_a_prediction_step_that_stores_no_rows_counts_its_batches_alike() -> None:
    """As one of release 0.7 does, in a subclass; the evaluation failed in torch."""
    assert means_over_rows(STORED, Accelerator(cpu=True)) == {"margins": 2.0, "accuracies": 0.75}
