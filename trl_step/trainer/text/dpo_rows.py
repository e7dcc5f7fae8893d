"""Rows of a `DPOTrainer`: texts to token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import IterableDataset

from trl_step.data.formatting import features_of
from trl_step.trainer.text.text_trainer import mapped

TokenizeRow = Callable[[Mapping[str, Any]], dict[str, Any]]


def tokenized_pairs(tokenize_row: TokenizeRow, num_proc: int | None, rows: Any, **options: Any) -> Any:
    """Rows with the texts `prompt`, `chosen`, `rejected`, tokenized.

    Args:
        tokenize_row: from the texts of a row to its token ids.
        num_proc: processes that tokenize; None: this one.
        rows: a `datasets.Dataset`, or a stream.
        options: of their `map`.
    """
    if isinstance(rows, IterableDataset):  # accelerate cannot send texts to other processes
        options["remove_columns"] = [name for name in ("prompt", "chosen", "rejected") if name in features_of(rows)]
    return mapped(rows, tokenize_row, num_proc, **options)


def tokenized_later(tokenize_row: TokenizeRow, rows: Any) -> Any:
    """The same for rows that come when the trainer holds its model: datasets is not to hash that, nor to send it to
    other processes."""
    from datasets import Dataset
    from datasets.fingerprint import generate_random_fingerprint

    name = {"new_fingerprint": generate_random_fingerprint()} if isinstance(rows, Dataset) else {}
    return tokenized_pairs(tokenize_row, None, rows, **name)
