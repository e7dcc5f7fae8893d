"""Parts of the wrapped model that scripts ask the wrapper for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MixtralConfig, MixtralForCausalLM

from tests.models.tiny_models import SIZES, inputs_of, lora, wrapped
from tests.tiny import batch, trainer
from trl_step.models import AutoModelForCausalLMWithValueHead


@pytest.mark.parametrize("adapter", [None, lora()])
def test_the_wrapper_has_the_parts_of_the_model(adapter: Any) -> None:
    model = wrapped(peft_config=adapter)
    inside = model.pretrained_model
    assert model.generation_config is inside.generation_config
    assert model.device == inside.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.get_input_embeddings() is inside.get_input_embeddings()
    assert model.get_output_embeddings() is inside.get_output_embeddings()
    assert wrapped(peft_config=adapter, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("adapter", [None, lora()])
def test_a_generation_config_given_to_the_wrapper_is_the_models(adapter: Any) -> None:
    model = wrapped(peft_config=adapter)
    model.generation_config = GenerationConfig(max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert model.pretrained_model.generation_config is model.generation_config
    assert model.generate(**inputs_of()).shape == (3, 8)
    model.generation_config.max_new_tokens = 3
    assert model.generate(**inputs_of()).shape == (3, 9)


@pytest.mark.parametrize("adapter", [None, lora()])
def test_the_modules_that_are_not_split_are_the_models_or_those_assigned(adapter: Any) -> None:
    model = wrapped(peft_config=adapter)
    assert model._no_split_modules == ["GPT2Block"]
    model._no_split_modules = ["GPT2MLP"]  # as verl's critic does
    assert model._no_split_modules == ["GPT2MLP"]
    assert wrapped()._no_split_modules == ["GPT2Block"]
    model._no_split_modules = None
    assert model._no_split_modules == ["GPT2Block"]


def test_a_subclass_may_have_a_device_of_its_own() -> None:
    class Mine(AutoModelForCausalLMWithValueHead):
        def __init__(self, pretrained_model: Any, **kwargs: Any) -> None:
            super().__init__(pretrained_model, **kwargs)
            self.device = "mine"

    assert Mine(wrapped().pretrained_model).device == "mine"
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = wrapped().nothing_of_the_kind


def mixtral(output_router_logits: bool) -> Any:
    torch.manual_seed(0)
    sizes = SIZES | {"vocab_size": 60, "num_local_experts": 2, "num_key_value_heads": 1}
    return MixtralForCausalLM(MixtralConfig(**sizes, output_router_logits=output_router_logits)).eval()


@pytest.mark.parametrize("adapter", [None, lora(target_modules=["q_proj"], fan_in_fan_out=False)])
def test_router_logits_are_switched_off_in_generate(adapter: Any) -> None:
    """transformers adds up the loss of the router over prompt and new tokens, and their numbers differ."""
    queries, options = batch()[0], {"max_new_tokens": 3, "do_sample": False}
    answers = []
    for flag in (True, False):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(mixtral(flag), peft_config=adapter)
        ours = trainer(model)
        padded = torch.tensor([[0, 5, 6], [4, 5, 6]])
        whole = model.generate(input_ids=padded, attention_mask=(padded > 0).long(), **options)
        answers.append([*ours.generate(queries, **options), *whole])
        assert model.config.output_router_logits is flag
    assert all(map(torch.equal, *answers))
