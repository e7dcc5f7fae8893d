"""Labels of a data set are left out before the collator, as release 0.7 did."""

from __future__ import annotations

import pytest

from tests.port.test_run import run

SOURCE = """
from datasets import Dataset
from transformers import DataCollatorWithPadding
from tests import tiny
from trl import PPOTrainer
rows = [{"input_ids": [4, 5, 6][: 1 + i % 3], "labels": [7] * (1 + i % 2)} for i in range(8)]
tokenizer = tiny.tokenizer()
trainer = PPOTrainer(tiny.config(SETTINGS), tiny.with_value_head("gpt2"), None, tokenizer, Dataset.from_list(rows),
                     data_collator=DataCollatorWithPadding(tokenizer))
"""


def test_labels_are_left_out_and_said() -> None:
    told: list[str] = []
    names = run(SOURCE.replace("SETTINGS", "") + "(batch,) = trainer.dataloader", told)
    assert set(names["batch"]) == {"input_ids", "attention_mask"}  # type: ignore[call-overload]
    said = "column 'labels' of the data set -> left out, as TRL did; remove_unused_columns=False keeps it"
    assert [line.partition(": ")[2] for line in told].count(said) == 1


def test_they_stay_if_no_column_is_removed() -> None:
    source = SOURCE.replace("SETTINGS", "remove_unused_columns=False")
    with pytest.raises(ValueError, match="labels"):
        run(source + "(batch,) = trainer.dataloader")
