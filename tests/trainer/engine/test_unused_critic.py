"""A separate critic does not run in a step whose advantages are given."""

from __future__ import annotations

import pytest
import torch

from tests import tiny
from trl_step import PPOTrainer


@pytest.mark.parametrize("penalty", ["kl", "full"])
def test_a_critic_runs_only_if_its_values_are_used(penalty: str) -> None:
    critic = tiny.with_value_head("llama", seed=1)
    settings = tiny.config(init_kl_coef=0, adap_kl_ctrl=False, kl_penalty=penalty)
    ours = PPOTrainer(settings, tiny.with_value_head("gpt2"), None, tiny.tokenizer(), value_model=critic)
    passes: list[int] = []
    critic.pretrained_model.register_forward_hook(lambda *_: passes.append(1))
    before = tiny.weights(ours.model)

    samples = tiny.batch()
    ours.step(*samples, advantages=samples[2])
    moved = {name for name, weight in tiny.weights(ours.model).items() if not torch.equal(weight, before[name])}
    assert passes == []
    assert any(name.startswith("policy.") for name in moved)
    assert not any(name.startswith("critic.") for name in moved)

    ours.step(*tiny.batch(seed=2))
    minibatches, epochs = 2, 4
    assert len(passes) == minibatches * (1 + epochs)
