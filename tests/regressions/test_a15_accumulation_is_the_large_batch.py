"""Row A15: k accumulated mini-batches are one large one, if the loss is normalised over tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import batch, config, tokenizer, weights, with_value_head
from trl_step import PPOTrainer

CUTS = {"one": (8, 1), "two": (4, 2), "four": (2, 4), "eight": (1, 8)}


class Plain(PPOTrainer):
    """Goes the way of release 0.7, with full logits."""

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss(*args, **kwargs)


def train(cut: str, normalization: str, count: int = 8, cls: type = PPOTrainer, name: str = "gpt2") -> Any:
    size, accumulation = CUTS[cut]
    model = with_value_head(name)
    options = {"mini_batch_size": size, "gradient_accumulation_steps": accumulation}
    # not Adam: it makes whole steps out of the rounding of gradients that are 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ours = cls(config(loss_normalization=normalization, **options), model, None, tokenizer(), optimizer=optimizer)
    for step in range(2):
        ours.step(*batch(count, seed=step))
    return weights(model)


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("cls", [PPOTrainer, Plain])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
@pytest.mark.parametrize("cut", ["two", "four", "eight"])
def test_ragged_mini_batches_add_up_to_the_large_batch(cut: str, name: str, cls: type) -> None:
    large = train("one", "tokens", cls=cls, name=name)
    assert largest_difference(large, train(cut, "tokens", cls=cls, name=name)) < 1e-5


@pytest.mark.parametrize("count", [7, 11])
def test_also_where_the_last_mini_batch_is_smaller(count: int) -> None:
    assert largest_difference(train("one", "tokens", count), train("four", "tokens", count)) < 1e-5


def test_the_default_is_the_mean_of_means_as_it_was() -> None:
    one, four = train("one", "mini_batch"), train("four", "mini_batch")
    assert largest_difference(one, four) > 1e-4
    assert largest_difference(one, train("one", "tokens")) == 0  # a single mini-batch is both
    assert config().loss_normalization == "mini_batch"


def test_in_the_default_a_smaller_last_mini_batch_weighs_less() -> None:
    """Samples of one length: then each sample counts alike, wherever the cut falls, in both normalisations."""
    queries = [torch.full((4,), 4 + i) for i in range(7)]
    responses = [torch.full((5,), 14 + i) for i in range(7)]
    scores = [float(i) for i in range(7)]
    seen = []
    for cut, normalization in (("one", "mini_batch"), ("four", "mini_batch"), ("four", "tokens")):
        size, accumulation = CUTS[cut]
        model = with_value_head("gpt2")
        options = {"mini_batch_size": size, "gradient_accumulation_steps": accumulation}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        settings = config(loss_normalization=normalization, **options)
        PPOTrainer(settings, model, None, tokenizer(), optimizer=optimizer).step(queries, responses, scores)
        seen.append(weights(model))
    assert largest_difference(seen[0], seen[1]) < 1e-5
    assert largest_difference(seen[0], seen[2]) < 1e-5
