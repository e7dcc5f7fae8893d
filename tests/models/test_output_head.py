from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.models.tiny_models import inputs_of, lora, plain, shake_adapters, some_rows, wrapped
from trl_step.models.output_head import describe_output_head

# name -> (has a bias, scale, soft cap)
FORMULAS = {
    "gpt2": (False, 1.0, None),
    "gpt_neox": (False, 1.0, None),
    "llama": (False, 1.0, None),
    "opt_projected": (False, 1.0, None),
    "gemma2": (False, 1.0, 3.0),
    "gemma3": (False, 1.0, None),
    "bloom": (False, 1.0, None),
    "phi": (True, 1.0, None),
    "cohere": (False, 0.3, None),
    "granite": (False, 1 / 3.0, None),
    "t5": (False, 1.0, None),
    "bart": (True, 1.0, None),
    "bert_to_bert": (True, 1.0, None),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_gives_the_logits(name: str) -> None:
    model, inputs = wrapped(name), inputs_of(name)
    head = describe_output_head(model.pretrained_model)
    assert head is not None
    assert (head.bias is not None, head.scale, head.softcap) == FORMULAS[name]
    assert any(head.weight is parameter for parameter in model.parameters())

    def by_formula(hidden: torch.Tensor, embedding: nn.Module) -> torch.Tensor:
        x = head.scale * nn.functional.linear(hidden, head.weight, head.bias)
        return x if head.softcap is None else head.softcap * torch.tanh(x / head.softcap)

    rows = some_rows(inputs)
    logits, _, _ = model(**inputs)
    own, _, _ = model(**inputs, rows=rows, head=by_formula)
    torch.testing.assert_close(own, logits[rows])


def test_a_trained_bias_is_the_models_own_parameter() -> None:
    model = plain("phi")
    assert describe_output_head(model).bias is model.lm_head.bias


def test_half_precision() -> None:
    head = describe_output_head(plain("granite").to(torch.bfloat16))
    assert head.scale == 1 / 3.0


def test_an_adapter_on_the_head_is_no_plain_product_even_while_it_is_fresh() -> None:
    config = lora(target_modules=["lm_head"], fan_in_fan_out=False)
    model = wrapped(peft_config=config).pretrained_model
    assert describe_output_head(model) is None
    assert describe_output_head(shake_adapters(model)) is None


def test_an_adapter_elsewhere_does_not_matter() -> None:
    model = shake_adapters(wrapped(peft_config=lora()).pretrained_model)
    assert describe_output_head(model).scale == 1.0


@pytest.mark.parametrize("change", [lambda x: x + 0.01, lambda x: x**3, lambda x: x.roll(1, -1), lambda x: x[..., 1:]])
def test_anything_else_behind_the_head_is_noticed(change) -> None:
    model = plain("gpt2")
    model.lm_head.register_forward_hook(lambda _module, _arguments, logits: change(logits))
    assert describe_output_head(model) is None


def test_a_head_with_parts_of_its_own_is_no_plain_product() -> None:
    model = plain("gpt2")
    model.lm_head.register_parameter("gain", nn.Parameter(torch.ones(1)))
    assert describe_output_head(model) is None


def test_a_quantized_weight_is_no_plain_product() -> None:
    model = plain("gpt2")
    model.lm_head.weight = nn.Parameter(torch.ones(40, 16, dtype=torch.int8), requires_grad=False)
    assert describe_output_head(model) is None


def test_the_model_is_left_as_it_was() -> None:
    model = plain("gpt2").train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    describe_output_head(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.lm_head._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
