"""Labels of a data set, which release 0.7's `PPOTrainer` left out before its collator: it may not pad them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl_step.replacing import replaced
from trl_step.trainer.ppo_trainer import PPOTrainer

LABELS = ("label_ids", "labels")


@contextmanager
def old_columns(report: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, `PPOTrainer` leaves them out if it removes columns, which is reported."""
    remove, choose = PPOTrainer._remove_unused_columns, PPOTrainer._set_signature_columns_if_needed

    @functools.wraps(choose)
    def set_signature_columns(trainer: Any) -> None:
        choose(trainer)
        trainer._signature_columns = [name for name in trainer._signature_columns if name not in LABELS]

    @functools.wraps(remove)
    def remove_unused_columns(trainer: Any, dataset: Any, description: str | None = None) -> Any:
        left = remove(trainer, dataset, description)
        for name in set(LABELS).intersection(dataset.column_names).difference(left.column_names):
            report(f"column {name!r} of the data set", "left out, as TRL did; remove_unused_columns=False keeps it")
        return left

    with (
        replaced(PPOTrainer, "_set_signature_columns_if_needed", set_signature_columns),
        replaced(PPOTrainer, "_remove_unused_columns", remove_unused_columns),
    ):
        yield
