"""`trainer.dataloader` goes on at the next batch, in the same order, with the same random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.utils import DataLoaderConfiguration
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tests.tiny import config, tokenizer, with_value_head
from trl_step import PPOTrainer
from trl_step.trainer.runs import random_streams
from trl_step.trainer.runs.codec import cloned
from trl_step.trainer.runs.data_loader import PositionedLoader

PASS = 5
"""Batches of eight of 45 rows; five rows are left over."""


class Rows(Dataset):
    def __len__(self) -> int:
        return 45

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index, random.randint(0, 10**9), np.random.randint(10**9), int(torch.randint(10**9, ()))])


class Plain(Dataset):
    def __len__(self) -> int:
        return 45

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([index])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.tensor([i]) for i in range(45))


class OfGenerator(PPOTrainer):
    def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> DataLoader:
        generator = torch.Generator().manual_seed(3)
        return DataLoader(dataset, 8, shuffle=True, drop_last=True, generator=generator)


class OfWorkers(PPOTrainer):
    def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> DataLoader:
        return DataLoader(dataset, 8, shuffle=True, drop_last=True, num_workers=1)


class InOrder(PPOTrainer):
    def prepare_dataloader(self, dataset: Any, data_collator: Any = None) -> DataLoader:
        return DataLoader(dataset, 8, drop_last=True)


LOADERS: dict[str, tuple[type, Any, dict[str, Any]]] = {
    "plain": (PPOTrainer, Rows(), {}),
    "own generator": (OfGenerator, Rows(), {}),
    "workers": (OfWorkers, Plain(), {}),
    "iterable": (InOrder, Stream(), {"dispatch_batches": False}),
    "seedable sampler": (PPOTrainer, Rows(), {"use_seedable_sampler": True, "data_seed": 4}),
}
"""The trainer, its data set, options of `DataLoaderConfiguration`."""


def loader(name: str, seed: int = 0) -> Any:
    cls, dataset, options = LOADERS[name]
    options = {"dataloader_config": DataLoaderConfiguration(**options)}
    settings = config(seed=seed, accelerator_kwargs={"cpu": True, **options})
    return cls(settings, with_value_head("gpt2"), None, tokenizer(), dataset=dataset).dataloader


def steps(batches: Any, seen: list[list[Any]]) -> Iterator[None]:
    """Write down each batch, and draw as a step does."""
    for batch in batches:
        seen.append(batch.tolist())
        random.random(), np.random.rand(), torch.rand(())
        yield


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("saved_at", [1, 3, PASS, PASS + 2])
def test_the_rest_of_a_pass_and_the_next_one(saved_at: int, name: str) -> None:
    ours, seen = loader(name), list[list[Any]]()
    position: Any = None
    for _ in range(3):
        for _ in steps(ours, seen):
            if len(seen) == saved_at:
                position, streams = cloned(ours.state_dict()), random_streams.capture()
    again, rest = loader(name, seed=1), list[list[Any]]()
    again.load_state_dict(position)
    random_streams.restore(streams)
    for _ in range(3 - (saved_at - 1) // PASS):
        for _ in steps(again, rest):
            pass
    assert rest == seen[saved_at:]
    assert len(seen) == 3 * PASS
    assert again.iteration == ours.iteration


def test_a_loop_that_is_left_early_ends_its_pass() -> None:
    ours = loader("plain")
    for i, _ in enumerate(ours):
        if i == 1:
            break
    assert ours.state_dict()["given"] is None
    next(iter(ours))  # a look at the first batch
    assert ours.state_dict()["given"] is None


def test_a_pass_that_was_given_up_does_not_end_the_next_one() -> None:
    ours = loader("plain")
    first, second = iter(ours), iter(ours)
    next(first)
    next(second), next(second)
    first.close()  # type: ignore[attr-defined]
    assert ours.state_dict()["given"] == 2


def test_a_position_that_was_set_is_the_position() -> None:
    ours = loader("plain")
    passing = iter(ours)
    next(passing), next(passing)
    position = ours.state_dict()
    again = loader("plain")
    again.load_state_dict(position)
    assert again.state_dict()["given"] == 2
    assert again.state_dict()["start"] is position["start"]


def test_it_is_still_a_prepared_loader() -> None:
    """Scripts of old skip batches by hand, and ask for what a loader has."""
    ours = loader("plain")
    assert type(ours) is PositionedLoader
    assert isinstance(ours, DataLoader)
    assert len(ours) == PASS
    assert len(ours.dataset) == 45
    assert len(list(skip_first_batches(ours, 2))) == PASS - 2
