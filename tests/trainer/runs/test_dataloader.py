"""`trainer.dataloader`: whole batches of `batch_size`, shuffled by the seed, without columns that nobody reads."""

from __future__ import annotations

from typing import Any

import datasets
import pytest
import torch

from tests.tiny import batch, config, tokenizer, with_value_head
from trl_step import PPOTrainer

ROWS = 20


def collate(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def dataset() -> datasets.Dataset:
    columns = {
        "input_ids": [[4 + i, 5, 6] for i in range(ROWS)],
        "query": [f"query {i}" for i in range(ROWS)],
        "label": [i % 2 for i in range(ROWS)],
        "origin": [f"file {i}" for i in range(ROWS)],
    }
    return datasets.Dataset.from_dict(columns)


def build(data: Any, collator: Any = collate, name: str = "gpt2", **options: Any) -> PPOTrainer:
    model = with_value_head(name)
    return PPOTrainer(config(**options), model, None, tokenizer(), dataset=data, data_collator=collator)


def test_batches_are_whole_and_every_row_comes_once() -> None:
    ours = build(dataset())
    batches = list(ours.dataloader)
    assert [len(rows["query"]) for rows in batches] == [8, 8]
    seen = [query for rows in batches for query in rows["query"]]
    assert len(set(seen)) == 16
    assert len(ours.dataloader) == 2


def test_the_order_is_that_of_the_seed() -> None:
    orders = [[rows["query"] for rows in build(dataset(), seed=seed).dataloader] for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0][0] + orders[0][1] != [f"query {i}" for i in range(16)], "it is shuffled"


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_columns_that_nobody_reads_are_removed(name: str) -> None:
    assert set(next(iter(build(dataset(), name=name).dataloader))) == {"input_ids", "query", "label"}
    kept = build(dataset(), name=name, remove_unused_columns=False)
    assert set(next(iter(kept.dataloader))) == {"input_ids", "query", "label", "origin"}


def test_a_torch_dataset_is_taken_as_it_is() -> None:
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": torch.tensor([4 + index, 5]), "anything": index}

    (first, second) = build(Rows()).dataloader
    assert set(first) == {"input_ids", "anything"}
    assert len(set(first["anything"] + second["anything"])) == 16


def test_a_set_format_and_the_default_collator() -> None:
    data = dataset().remove_columns(["query", "label", "origin"]).with_format("torch")
    rows = next(iter(build(data, collator=None).dataloader))
    assert rows["input_ids"].shape == (8, 3)


def test_the_classic_loop_runs() -> None:
    ours = build(dataset().with_format("torch"))
    for rows in ours.dataloader:
        queries = list(rows["input_ids"])
        responses = ours.generate(queries, return_prompt=False, do_sample=True, top_k=0, max_new_tokens=4)
        rows["response"] = [str(response.tolist()) for response in responses]
        stats = ours.step(queries, responses, batch()[2])
        ours.log_stats(stats, rows, batch()[2])
    assert ours.current_step == 2


def test_no_dataset_no_dataloader() -> None:
    ours = PPOTrainer(config(), with_value_head("gpt2"), None, tokenizer())
    assert ours.dataloader is None


def test_another_kind_of_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="dataset must be a torch or datasets Dataset, got list"):
        build([1, 2, 3])


def test_columns_that_a_collator_or_the_model_reads_are_kept() -> None:
    rows = {"input_ids": [[4, 5, 6]] * 8, "labels": [[1, 2, 3]] * 8, "position_ids": [[0, 1, 2]] * 8, "other": [0] * 8}
    seen: list[set[str]] = []

    def keep(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.append(set(samples[0]))
        return samples

    data = datasets.Dataset.from_dict(rows)
    ours = build(data, keep)
    next(iter(ours.dataloader))
    assert seen[0] == {"input_ids", "labels", "position_ids"}
