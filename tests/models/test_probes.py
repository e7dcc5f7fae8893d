"""What a few tokens say about a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    XLNetConfig,
    XLNetLMHeadModel,
)

from tests import tiny
from tests.models.families import small_model
from tests.models.tiny_models import CAUSAL, SEQ2SEQ, SIZES, VISION, plain
from trl_step.models.probes import change_by_length, require_causal


def paligemma() -> Any:
    text = {**SIZES, "model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1}
    vision = {**VISION, "model_type": "siglip_vision_model", "projection_dim": 16}
    config = PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=3, hidden_size=16)
    return PaliGemmaForConditionalGeneration(config)


def xlnet() -> Any:
    return XLNetLMHeadModel(XLNetConfig(vocab_size=40, d_model=16, n_layer=2, n_head=2, d_inner=24))


def bert() -> Any:
    """An encoder with a language model head: `is_decoder` was forgotten."""
    return BertLMHeadModel(BertConfig(**SIZES))


@pytest.mark.parametrize("build", [paligemma, xlnet, bert])
def test_a_model_that_looks_ahead_is_refused_when_the_trainer_is_built(build):
    torch.manual_seed(0)
    model = tiny.AutoModelForCausalLMWithValueHead.from_pretrained(build())
    with pytest.raises(ValueError, match=f"{build().__class__.__name__} is not causal.*changes the logits of earlier"):
        tiny.trainer(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [paligemma, xlnet, bert])
def test_rounding_does_not_hide_that_a_model_looks_ahead(build, dtype):
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.01)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="is not causal"):
        require_causal(model.to(dtype))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_causal_models_pass(name, dtype):
    model = plain(name).to(dtype)
    require_causal(model)
    assert change_by_length(model) is None


def test_a_decoder_that_looks_ahead_with_a_cache_only_is_causal_in_a_step():
    """FSMT leaves its causal mask out if it is asked for a cache; a step never asks for one."""
    model = small_model("seq2seq", "fsmt")
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
    first, second = model.eval()(input_ids=ids[:1].expand(2, -1), decoder_input_ids=ids).logits
    assert (first[:-1] - second[:-1]).abs().max() > 0.1
    require_causal(model)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_model_whose_logits_depend_on_the_number_of_columns_is_found(kind):
    assert change_by_length(small_model(kind, "prophetnet")) > 0.1


def test_asking_leaves_modes_and_random_streams_alone():
    model = plain("gpt2").train()
    model.transformer.h[0].eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    require_causal(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes


def test_a_model_that_draws_numbers_in_eval_mode_leaves_the_random_stream_alone():
    model = plain("gpt2")
    model.register_forward_hook(lambda *_: torch.randn(1) and None)
    before = torch.get_rng_state()
    require_causal(model)
    assert torch.equal(torch.get_rng_state(), before)
