"""Row A2: the policy that samples, that is scored and that is trained is one and the same, dropout or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from tests.tiny import WatchedUpdates, batch, trainer, with_value_head
from trl_step import PPOTrainer

MODELS = ["gpt2", "llama", "t5", "bart", "lora"]
SAMPLING = {"do_sample": True, "top_k": 0, "max_new_tokens": 6}


def dropping(name: str) -> Any:
    """A model with strong dropout; LoRA drops out in its adapter as well."""
    if name != "lora":
        return with_value_head(name, dropout=0.5)
    return with_value_head("gpt2", dropout=0.5, peft_config=LoraConfig(r=4, lora_dropout=0.5, task_type="CAUSAL_LM"))


@pytest.mark.parametrize("name", MODELS)
def test_with_a_learning_rate_of_0_the_kl_is_0_and_the_ratio_1(name: str) -> None:
    ours = trainer(dropping(name), learning_rate=0.0, mini_batch_size=8)
    ours.model.train()  # as a script may leave it
    queries = batch()[0]
    for step in range(2):
        responses = ours.generate(queries, return_prompt=False, **SAMPLING)
        stats = ours.step(queries, responses, batch(seed=step)[2])
        assert stats["objective/kl"] == 0
        assert not np.any(stats["objective/kl_dist"])
        assert torch.equal(stats["objective/logprobs"], stats["objective/ref_logprobs"])
        # training shuffles the samples; beside other batch mates a product rounds otherwise
        assert float((stats["ppo/policy/ratio"] - 1).abs().max()) < 2e-6
        assert stats["ppo/policy/approxkl"] < 1e-12


class Watcher(WatchedUpdates):
    """Keeps the ratio of a step's first mini-batch."""

    first: torch.Tensor | None = None

    def _update(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], mask: torch.Tensor) -> Any:
        if self.first is None:
            self.first = stats["policy/ratio"]
        return super()._update(loss, stats, mask)


SIZES = {
    "one mini-batch": {"mini_batch_size": 8},
    "mini-batches": {"mini_batch_size": 2},
    "a last one that is smaller": {"mini_batch_size": 3, "batch_size": 9},
    "accumulated": {"mini_batch_size": 2, "gradient_accumulation_steps": 2},
    "in parts": {"mini_batch_size": 4, "forward_tokens": 16},
    "full": {"mini_batch_size": 2, "kl_penalty": "full"},
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", MODELS)
def test_the_first_ratio_is_1_to_rounding_while_the_weights_move(name: str, size: str) -> None:
    ours = trainer(dropping(name), cls=Watcher, **SIZES[size])
    for step in range(2):
        ours.first = None
        stats = ours.step(*batch(seed=step))
        assert float((ours.first - 1).abs().max()) < 2e-6
        assert stats["ppo/policy/approxkl"] > 0
        assert step > 0 or stats["objective/kl"] == 0


@pytest.mark.parametrize("name", MODELS)
def test_in_later_mini_batches_the_ratio_is_1_to_rounding(name: str) -> None:
    """They are scored beside other batch mates than they are trained with, and a product of other sizes rounds
    otherwise: some units in the last place of a log-prob."""
    stats = trainer(dropping(name), learning_rate=0.0, mini_batch_size=2).step(*batch())
    assert stats["objective/kl"] == 0
    assert float((stats["ppo/policy/ratio"] - 1).abs().max()) < 2e-6


def test_rolling_forward_leaves_the_order_of_mini_batches_alone() -> None:
    class Order(PPOTrainer):
        def compute_rewards(self, *args: Any) -> Any:
            self.state = np.random.get_state()[1].tolist()
            return super().compute_rewards(*args)

    ours = trainer(with_value_head("gpt2"), cls=Order, mini_batch_size=2)
    before = np.random.get_state()[1].tolist()
    ours.step(*batch())
    assert ours.state == before


@pytest.mark.parametrize("name", MODELS)
def test_generate_samples_without_dropout_and_gives_the_mode_back(name: str) -> None:
    """The same seed gives the same responses in both modes, in a mixture of them, and before and after a step."""
    ours = trainer(dropping(name), learning_rate=0.0)
    queries = batch()[0]
    drawn = []

    def draw() -> None:
        modes = [module.training for module in ours.model.modules()]
        torch.manual_seed(7)
        drawn.append([r.tolist() for r in ours.generate(queries, **SAMPLING)])
        assert [module.training for module in ours.model.modules()] == modes

    ours.model.eval()
    draw()
    ours.model.train()
    draw()
    next(module for module in ours.model.modules() if isinstance(module, torch.nn.Dropout)).eval()
    draw()
    ours.step(*batch())
    draw()
    assert all(responses == drawn[0] for responses in drawn)


@pytest.mark.parametrize("method", ["generate", "step"])
def test_the_mode_is_given_back_after_an_error(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer(dropping("gpt2"))
    ours.model.train()
    ours.model.v_head.eval()
    modes = [module.training for module in ours.model.modules()]

    def fail(*args: Any, **kwargs: Any) -> None:
        raise ArithmeticError("no luck")

    if method == "generate":
        monkeypatch.setattr(ours.model.pretrained_model, "generate", fail)
    else:
        monkeypatch.setattr(ours._updater, "update", fail)
    with pytest.raises(ArithmeticError, match="no luck"):
        ours.generate(batch()[0], **SAMPLING) if method == "generate" else ours.step(*batch())
    assert [module.training for module in ours.model.modules()] == modes


def test_the_reference_samples_without_dropout() -> None:
    ours = trainer(dropping("lora"), learning_rate=0.0)
    ours.model.train()
    torch.manual_seed(0)
    _, reference = ours.generate(batch()[0], generate_ref_response=True, do_sample=False, max_new_tokens=6)
    own, again = ours.generate(batch()[0], generate_ref_response=True, do_sample=False, max_new_tokens=6)
    for one, two, three in zip(reference, again, own, strict=True):
        assert one.tolist() == two.tolist() == three.tolist()  # the adapter is fresh: it changes nothing
