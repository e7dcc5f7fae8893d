"""A policy of which nothing but the value head trains: said when the trainer is built."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.tiny import batch, config, gpt2, tokenizer, trainer, weights, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer

MESSAGE = "nothing of the policy but its value head trains"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a trained adapter with a value head."""
    torch.manual_seed(0)
    gpt2().save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), peft_config=lora
    )
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def messages(model: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer(model)
    return [str(warning.message) for warning in seen if MESSAGE in str(warning.message)]


def test_a_frozen_adapter_is_said_with_what_to_do(adapter: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(adapter.parent / "base")
    for model in (
        AutoModelForCausalLMWithValueHead.from_pretrained(adapter),
        AutoModelForCausalLMWithValueHead.from_pretrained(PeftModel.from_pretrained(base, str(adapter))),
        AutoModelForCausalLMWithValueHead.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter)),
    ):
        (message,) = messages(model)
        assert "is_trainable=True" in message


def test_a_frozen_trunk_is_said() -> None:
    model = with_value_head("gpt2")
    model.pretrained_model.requires_grad_(False)
    (message,) = messages(model)
    assert "requires_grad" in message
    assert "is_trainable" not in message


def test_what_trains_is_not_warned_of(adapter: Path) -> None:
    assert not messages(with_value_head("gpt2"))
    assert not messages(AutoModelForCausalLMWithValueHead.from_pretrained(adapter, is_trainable=True))


def test_a_frozen_adapter_does_not_move(adapter: Path) -> None:
    """What the warning says is so."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(adapter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.warns(UserWarning, match=MESSAGE):
        ours = trainer(model)
    ours.step(*batch())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}
    assert moved == {"v_head.summary.weight", "v_head.summary.bias"}


def test_parameters_that_come_after_the_trainer_are_refused() -> None:
    """A resized embedding keeps the optimizer's old moments: fused Adam read outside of them."""
    ours = trainer(with_value_head("gpt2"))
    ours.step(*batch())
    before = ours.model.v_head.summary.weight.detach().clone()
    ours.model.pretrained_model.resize_token_embeddings(70)
    with pytest.raises(
        ValueError, match=r"1 parameters of model, such as pretrained_model\.transformer\.wte\.weight, are new or"
    ):
        ours.step(*batch())
    assert torch.equal(before, ours.model.v_head.summary.weight)


def test_an_adapter_that_comes_later_is_refused() -> None:
    ours = trainer(with_value_head("gpt2"))
    ours.model.pretrained_model = get_peft_model(ours.model.pretrained_model, LoraConfig(fan_in_fan_out=True))
    with pytest.raises(ValueError, match=r"4 parameters of model, such as .*lora_A.* are new or have another shape"):
        ours.step(*batch())


def test_a_layer_that_is_thawed_later_is_said_to_stay() -> None:
    model = with_value_head("gpt2")
    layer = model.pretrained_model.transformer.h[0]
    layer.requires_grad_(False)
    ours = trainer(model)
    ours.step(*batch())
    before = weights(layer)
    layer.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"12 parameters of model, such as .*h\.0\..*, were frozen when the trainer"):
        ours.step(*batch())
    assert all(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters()), "it stays"


def test_a_thawed_layer_that_the_optimizer_holds_trains_in_silence() -> None:
    model = with_value_head("gpt2")
    layer = model.pretrained_model.transformer.h[0]
    layer.requires_grad_(False)
    ours = PPOTrainer(config(), model, None, tokenizer(), optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))
    before = weights(layer)
    layer.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*were frozen when the trainer")
        ours.step(*batch())
    assert not any(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())


def test_another_adapter_that_is_active_later_is_said_to_stay() -> None:
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
    inner = get_peft_model(gpt2(), lora)
    inner.add_adapter("other", lora)
    ours = trainer(AutoModelForCausalLMWithValueHead.from_pretrained(inner))
    inner.set_adapter("other")
    before = weights(inner)
    with pytest.warns(UserWarning, match=r"4 parameters of model, such as .*lora_A\.other.*, were frozen when"):
        ours.step(*batch())
    assert all(torch.equal(before[name], parameter) for name, parameter in inner.named_parameters()), "it stays"


def test_an_adapter_that_is_disabled_later_is_said_to_stay() -> None:
    inner = get_peft_model(gpt2(), LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False))
    ours = trainer(AutoModelForCausalLMWithValueHead.from_pretrained(inner))
    inner.base_model.disable_adapter_layers()
    before = weights(inner)
    with pytest.warns(UserWarning, match="nothing of the policy but its values trains any more"):
        ours.step(*batch())
    assert all(torch.equal(before[name], parameter) for name, parameter in inner.named_parameters()), "it stays"


def test_weights_that_train_in_float16_are_said() -> None:
    """With a learning rate of 1e-3 the policy moved by 3 nats per token in a step."""
    with pytest.warns(UserWarning, match="weights that train are float16"):
        trainer(with_value_head("gpt2").half())
    frozen = with_value_head("gpt2").half()
    frozen.pretrained_model.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="weights that train are float16")
        trainer(frozen)


def test_nothing_is_left_to_train() -> None:
    ours = PPOTrainer(config(advantage_estimator="grpo"), gpt2(), None, tokenizer())
    ours.model.pretrained_model.requires_grad_(False)
    queries, responses, scores = batch()
    with pytest.raises(ValueError, match=r"nothing of the policy trains any more: .* frozen, or its adapter was disab"):
        ours.step([queries[0]] * 8, responses, scores)


def test_weights_of_another_dtype_are_refused() -> None:
    """The moments of the optimizer stay those of the old dtype."""
    ours = trainer()
    ours.step(*batch())
    ours.model.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"30 parameters of model, .* are new or have another shape or dtype"):
        ours.step(*batch())
