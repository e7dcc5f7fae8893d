"""Row A7: how often the optimizer steps depends on the configuration alone, wherever the dataloader stands."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch

from tests.tiny import batch, config, tokenizer, with_value_head
from trl_step import PPOTrainer


def dataset(rows: int) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [[4 + i % 50, 5, 6] for i in range(rows)]})


def collate(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [torch.tensor(row[key]) for row in rows] for key in rows[0]}


def counting(options: dict[str, Any], rows: int = 24) -> tuple[PPOTrainer, list[int]]:
    """A trainer with a dataloader of `rows` rows, and a list that grows with every optimizer step."""
    model = with_value_head("gpt2")
    ours = PPOTrainer(config(**options), model, None, tokenizer(), dataset=dataset(rows), data_collator=collate)
    updates: list[int] = []
    ours.optimizer.optimizer.register_step_post_hook(lambda *args: updates.append(ours.current_step))
    return ours, updates


@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_the_last_batch_of_the_dataloader_is_like_the_others(accumulation: int) -> None:
    ours, updates = counting({"mini_batch_size": 2, "gradient_accumulation_steps": accumulation, "ppo_epochs": 1})
    per_step = []
    for rows in [*ours.dataloader, *ours.dataloader]:
        updates.clear()
        ours.step(rows["input_ids"], batch()[1], batch()[2])
        per_step.append(len(updates))
    assert per_step == [4 // accumulation] * 6


def test_steps_inside_and_outside_of_a_loop_over_the_dataloader_are_alike() -> None:
    ours, updates = counting({"mini_batch_size": 2, "gradient_accumulation_steps": 2, "ppo_epochs": 1}, rows=8)
    weights = []
    ours.step(*batch())
    outside = len(updates)
    for _ in ours.dataloader:  # its first batch is its last
        updates.clear()
        ours.step(*batch())
        weights.append(len(updates))
    assert weights == [outside] == [2]


def test_the_last_accumulation_of_an_uneven_batch_is_smaller_and_is_done() -> None:
    ours, updates = counting({"mini_batch_size": 2, "gradient_accumulation_steps": 2, "ppo_epochs": 3})
    queries, responses, scores = batch(7)
    ours.step(queries, responses, scores)
    assert len(updates) == 3 * 2  # 4 and 3 samples
    updates.clear()
    ours.step(queries[:1], responses[:1], scores[:1])
    assert len(updates) == 3
    updates.clear()
    ours.step(*batch(20))
    assert len(updates) == 3 * 5
