"""Uses of a trainer that cannot be meant, and that nothing said a word about."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from tests.tiny import batch, config, tokenizer, trainer, weights, with_value_head
from trl_step import PPOTrainer


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_step_without_gradients_is_refused_before_anything_happens(mode: Any) -> None:
    ours, stream = trainer(), torch.get_rng_state()
    before = weights(ours.model)
    with mode(), pytest.raises(ValueError, match=r"step is inside of torch.no_grad.. or torch.inference_mode"):
        ours.step(*batch())
    assert all(torch.equal(value, before[name]) for name, value in weights(ours.model).items())
    assert torch.equal(torch.get_rng_state(), stream)


def test_a_reference_that_becomes_the_policy_is_refused() -> None:
    """The KL was 0 in every step."""
    ours = trainer()
    ours.ref_model = ours.model
    with pytest.raises(ValueError, match="ref_model shares 30 trainable parameters with model"):
        ours.step(*batch())


def test_dropout_of_a_reference_in_train_mode_is_off() -> None:
    """A script that calls `train()` on its models got a KL of noise."""
    ours = trainer(with_value_head("gpt2", dropout=0.5))
    ours.ref_model.train()
    stats = ours.step(*batch())
    assert stats["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert ours.ref_model.pretrained_model.training, "its mode is given back"


def test_the_class_of_an_optimizer_is_refused() -> None:
    optimizer: Any = torch.optim.Adam
    with pytest.raises(TypeError, match=r"optimizer is the class Adam: make one, such as Adam\(model.parameters\(\)"):
        PPOTrainer(config(), with_value_head("gpt2"), None, tokenizer(), optimizer=optimizer)


def test_two_lengths_for_generate_are_said() -> None:
    ours = trainer()
    with pytest.warns(UserWarning, match="max_new_tokens=9 is ignored: a length_sampler is given"):
        responses = ours.generate(batch(2)[0], lambda: 2, return_prompt=False, max_new_tokens=9, eos_token_id=-1)
    assert [len(response) for response in responses] == [2, 2]


# --- settings that change while a run goes on ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("learning_rate", 0.5, r"from 0.001 to 0.5, but is read only .*: set the rates in trainer.optimizer.param_gr"),
        ("init_kl_coef", 5.0, r"from 0.2 to 5.0, .*: set trainer\.kl_ctl\.value"),
        ("temperature", 0.5, r"from 1.0 to 0.5, .*: set it before the trainer is built"),
        ("gradient_accumulation_steps", 2, r"from 1 to 2, .*: set config\.backward_batch_size"),
    ],
)
def test_a_setting_that_is_read_once_is_said_once(name: str, value: Any, told: str) -> None:
    ours = trainer()
    setattr(ours.config, name, value)
    with pytest.warns(UserWarning, match=rf"config\.{name} was changed {told}"):
        ours.step(*batch())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* was changed from")
        ours.step(*batch())
    same = trainer()
    for _ in range(2):
        same.step(*batch())
    expected = weights(same.model)
    assert all(torch.equal(value, expected[key]) for key, value in weights(ours.model).items()), "it has no effect"


def test_a_setting_that_is_read_in_each_step_is_not() -> None:
    ours = trainer()
    ours.config.cliprange, ours.config.ppo_epochs, ours.config.mini_batch_size = 0.1, 1, 2
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".* was changed from")
        stats = ours.step(*batch())
    assert stats["ppo/policy/ratio_var"] > 0


def test_a_later_value_that_cannot_be_is_refused_before_anything_happens() -> None:
    ours = trainer()
    before = weights(ours.model)
    ours.config.cliprange = -1.0
    with pytest.raises(ValueError, match=r"cliprange=-1.0 must be a finite number >= 0"):
        ours.step(*batch())
    assert all(torch.equal(value, before[name]) for name, value in weights(ours.model).items())
    ours.config.cliprange = 0.2
    ours.step(*batch())
