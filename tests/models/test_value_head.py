from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2Model, OPTConfig

from tests.models.families import small_model
from tests.models.tiny_models import CAUSAL, SEQ2SEQ, WIDTH, inputs_of, plain, wrapped, wrapper_of
from trl_step.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, ValueHead


@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_logits_and_values_are_those_of_the_plain_model(name: str) -> None:
    """The oracle is the documented way: all hidden states, of which the last one is read."""
    model, inputs = wrapped(name), inputs_of(name)
    logits, loss, values = model(**inputs)
    output = model.pretrained_model(**inputs, output_hidden_states=True)
    states = output.decoder_hidden_states if name in SEQ2SEQ else output.hidden_states
    assert loss is None
    assert torch.equal(logits, output.logits)
    torch.testing.assert_close(values, model.v_head(states[-1]).squeeze(-1))
    assert values.dtype == torch.float32


def test_labels_give_a_loss() -> None:
    model, inputs = wrapped(), inputs_of()
    _, loss, _ = model(**inputs, labels=inputs["input_ids"])
    torch.testing.assert_close(loss, model.pretrained_model(**inputs, labels=inputs["input_ids"]).loss)


def test_half_precision_logits_and_values_come_back_as_float32() -> None:
    model = wrapped(dtype=torch.bfloat16)
    logits, _, values = model(**inputs_of())
    assert next(model.pretrained_model.parameters()).dtype == torch.bfloat16
    assert logits.dtype == values.dtype == model.v_head.summary.weight.dtype == torch.float32


def test_a_cache_is_kept_only_where_it_is_asked_for() -> None:
    model, inputs = wrapped(), inputs_of()
    seen = []
    model.pretrained_model.transformer.register_forward_hook(lambda _m, _a, output: seen.append(output.past_key_values))
    whole, _, _ = model(**inputs)
    _, _, _, cache = model(inputs["input_ids"][:, :4], return_past_key_values=True)
    rest, _, _ = model(inputs["input_ids"][:, 4:], past_key_values=cache)
    assert seen[0] is None
    assert seen[1] is not None
    torch.testing.assert_close(rest, whole[:, 4:])


def test_value_head_defaults() -> None:
    head = ValueHead(GPT2Config(n_embd=WIDTH))
    assert isinstance(head.dropout, nn.Dropout)
    assert head.dropout.p == 0.1
    assert head.summary.weight.shape == (1, WIDTH)
    assert head(torch.zeros(2, 3, WIDTH, dtype=torch.bfloat16)).shape == (2, 3, 1)


def test_dropout_probability_by_argument_and_by_configuration() -> None:
    assert isinstance(ValueHead(GPT2Config(), summary_dropout_prob=0.0).dropout, nn.Identity)
    assert ValueHead(GPT2Config(), summary_dropout_prob=0.7).dropout.p == 0.7
    assert ValueHead(GPT2Config(summary_dropout_prob=0.3), summary_dropout_prob=0.7).dropout.p == 0.3


def test_width_of_a_projected_model() -> None:
    assert ValueHead(OPTConfig(hidden_size=32, word_embed_proj_dim=8)).summary.in_features == 8


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_normal_initialization(name: str) -> None:
    torch.manual_seed(3)
    model = wrapper_of(name).from_pretrained(plain(name), v_head_init_strategy="normal", v_head_initializer_range=5.0)
    assert model.v_head.summary.bias.item() == 0
    assert 2 < model.v_head.summary.weight.std().item() < 8


def test_normal_initialization_has_a_default_range() -> None:
    torch.manual_seed(3)
    model = wrapped(v_head_init_strategy="normal")
    assert 0.1 < model.v_head.summary.weight.std().item() < 0.3


def test_an_unknown_initialization_is_refused() -> None:
    with pytest.raises(ValueError, match=r"v_head_init_strategy='zeros'.*normal"):
        wrapped(v_head_init_strategy="zeros")


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match="GPT2Model has no language model head"):
        AutoModelForCausalLMWithValueHead(GPT2Model(GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, vocab_size=8)))


def test_the_wrapper_can_be_built_without_from_pretrained() -> None:
    model = AutoModelForCausalLMWithValueHead(plain("gpt2"))
    assert model(**inputs_of())[2].shape == (3, 6)


def test_only_the_encoder_decoder_wrapper_says_so() -> None:
    assert wrapped("t5").is_encoder_decoder
    assert not hasattr(wrapped("gpt2"), "is_encoder_decoder")


def test_generate_is_the_wrapped_models() -> None:
    model, inputs = wrapped(), inputs_of()
    kwargs = {"max_new_tokens": 3, "do_sample": False}
    assert torch.equal(model.generate(**inputs, **kwargs), model.pretrained_model.generate(**inputs, **kwargs))


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = wrapped().train(), inputs_of()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    calls = []
    block = model.pretrained_model.transformer.h[0]
    forward = block.attn.forward
    monkeypatch.setattr(block.attn, "forward", lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs))

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits, _, values = model(**inputs)
        (logits.square().mean() + values.sum()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    want, plain_calls = gradients(), len(calls)
    model.gradient_checkpointing_enable()
    assert model.gradient_checkpointing
    got = gradients()
    assert len(calls) - plain_calls == 2 * plain_calls
    torch.testing.assert_close(got, want)
    model.gradient_checkpointing_disable()
    assert not model.gradient_checkpointing


def test_a_head_refuses_what_it_does_not_know() -> None:
    config = GPT2Config(n_embd=WIDTH)
    with pytest.raises(ValueError, match=r"does not know sumary_dropout_prob: it takes summary_dropout_prob"):
        ValueHead(config, sumary_dropout_prob=0.0)
    wrapper_arguments = {"v_head_init_strategy": "normal", "v_head_initializer_range": 0.1}
    assert isinstance(ValueHead(config, summary_dropout_prob=0.0, **wrapper_arguments).dropout, nn.Identity)


@pytest.mark.parametrize(
    ("name", "given", "right"),
    [("bart", "CausalLM", "Seq2SeqLM"), ("t5", "CausalLM", "Seq2SeqLM"), ("gpt2", "Seq2SeqLM", "CausalLM")],
)
def test_a_model_of_the_other_kind_is_refused(name: str, given: str, right: str) -> None:
    """BART in the causal wrapper trained: its encoder had read the answer whose tokens it predicted."""
    classes = {"CausalLM": AutoModelForCausalLMWithValueHead, "Seq2SeqLM": AutoModelForSeq2SeqLMWithValueHead}
    with pytest.raises(ValueError, match=f"use AutoModelFor{right}WithValueHead in place of AutoModelFor{given}With"):
        classes[given].from_pretrained(plain(name))


def test_a_model_of_sound_that_is_listed_as_seq2seq_is_a_decoder() -> None:
    model = small_model("seq2seq", "qwen2_audio")
    with pytest.raises(ValueError, match="Qwen2AudioConfig: use AutoModelForCausalLMWithValueHead"):
        AutoModelForSeq2SeqLMWithValueHead.from_pretrained(model)
    AutoModelForCausalLMWithValueHead.from_pretrained(model)
