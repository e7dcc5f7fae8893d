"""Whole steps of models and settings whose shapes are special: the first KL is 0, or an error says what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    CLIPVisionConfig,
    DataCollatorWithPadding,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    ProphetNetConfig,
    ProphetNetForCausalLM,
    ProphetNetForConditionalGeneration,
    RwkvConfig,
    RwkvForCausalLM,
)

from tests import tiny
from tests.models.families import padding_error, small_model
from tests.tiny import IDS, SIZES, VOCABULARY, AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.models.positions import position_limits

NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
PROPHET = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64, "decoder_start_token_id": tiny.BOS, **IDS,
}  # fmt: skip


def openai_gpt() -> Any:
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}
    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(vocab_size=VOCABULARY, **shape, **NO_DROPOUT))


def modernbert() -> Any:
    """Its output embedding is called "decoder"."""
    config = ModernBertDecoderConfig(**SIZES, intermediate_size=64, local_attention=8, **IDS)
    return ModernBertDecoderForCausalLM(config)


def prophetnet() -> Any:
    """It predicts two tokens from each position."""
    return ProphetNetForCausalLM(ProphetNetConfig(**PROPHET, is_decoder=True, is_encoder_decoder=False))


def prophetnet_seq2seq() -> Any:
    return ProphetNetForConditionalGeneration(ProphetNetConfig(**PROPHET))


def mamba() -> Any:
    return MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4))


def rwkv() -> Any:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "context_length": 64}
    return RwkvForCausalLM(RwkvConfig(vocab_size=VOCABULARY, **shape, **IDS))


def llava() -> Any:
    """An image of 28 pixels has four patches and a class, so its tower has five positions."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=8)
    text = LlamaConfig(**SIZES, intermediate_size=64, **IDS)
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    )


def wrapped(model: Any, **options: Any) -> Any:
    wrapper = tiny.AutoModelForSeq2SeqLMWithValueHead
    if not model.config.is_encoder_decoder:
        wrapper = AutoModelForCausalLMWithValueHead
    return wrapper.from_pretrained(model, **options)


def first_kl(trainer: Any) -> float:
    queries, responses, scores = tiny.batch()
    first = trainer.step(queries, responses, scores)
    assert trainer.step(queries, responses, scores)["objective/kl"] != 0.0  # it trains
    assert first["ppo/policy/ratio_error"] < 1e-3
    return first["objective/kl"]


@pytest.mark.parametrize("build", [modernbert, prophetnet, prophetnet_seq2seq, llava, openai_gpt])
def test_the_first_kl_is_0(build):
    torch.manual_seed(0)
    assert first_kl(tiny.trainer(wrapped(build()))) == 0.0


@pytest.mark.parametrize("build", [prophetnet, prophetnet_seq2seq])
def test_samples_of_one_length_go_together_if_their_number_of_columns_changes_the_logits(build):
    """ProphetNet: the log-probs of a sample moved by 0.003 beside a longer one; with larger weights by 1.1."""
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    with pytest.warns(UserWarning, match="changes the logits of a token by .* if one more token follows"):
        trainer = tiny.trainer(wrapped(model), forward_tokens=None)
    queries, responses, scores = tiny.batch()
    assert padding_error(trainer, queries, responses) < 1e-5
    stats = trainer.step(queries, responses, scores)
    assert stats["ppo/policy/ratio_error"] < 1e-5
    assert stats["objective/kl"] == 0.0


@pytest.mark.parametrize(
    ("kind", "name", "limits"),
    [
        ("causal", "git", (None, 64)),  # its tower has 5 positions, and a name of its own
        ("causal", "phi4_multimodal", (None, None)),  # 4, inside the embedding
        ("causal", "gemma4", (None, None)),  # no tower for sound at all
        ("seq2seq", "t5gemma2", (None, None)),  # 4, inside the encoder of the text
    ],
)
def test_the_tower_for_images_sets_no_limit_wherever_it_is(kind, name, limits):
    assert position_limits(small_model(kind, name)) == limits


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("causal", "reformer", "Reformer cannot be trained by a step"),
    ],
)
def test_models_that_cannot_train_are_refused_when_they_are_wrapped(kind, name, why):
    with pytest.raises(ValueError, match=why):
        wrapped(small_model(kind, name))


class Plain(PPOTrainer):
    def loss(self, *args: Any) -> Any:
        return super().loss(*args)


def test_a_head_inside_of_the_decoder_is_found():
    """FSMT names the embedding of its decoder's tokens as its output embedding, and its decoder returns logits."""
    moved = []
    for cls in (PPOTrainer, Plain):
        trainer = tiny.trainer(wrapped(small_model("seq2seq", "fsmt")), cls=cls)
        head = trainer.model.pretrained_model.model.decoder.output_projection
        assert trainer._forward._heads[id(trainer.model)].head.weight is head.weight
        stats = trainer.step(*tiny.batch(seq2seq=True))
        assert (stats["objective/kl"], stats["ppo/policy/ratio_error"] < 1e-5) == (0.0, True)
        moved.append(tiny.weights(trainer.model))
    for name, weight in moved[0].items():
        if not name.endswith("k_proj.bias"):  # attention does not depend on it: its gradient is rounding
            torch.testing.assert_close(moved[1][name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_values_are_those_of_the_states_that_enter_the_head():
    model = wrapped(small_model("seq2seq", "fsmt")).eval()
    ids = torch.randint(4, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "decoder_input_ids": ids, "use_cache": False}
    with torch.no_grad():
        states = model.pretrained_model(**inputs, output_hidden_states=True).decoder_hidden_states[-1]
        values = model.v_head(states).squeeze(-1)
        torch.testing.assert_close(model(**inputs)[2], values)
        rows = torch.tensor([1, 7])
        torch.testing.assert_close(model(**inputs, rows=rows)[2], values.flatten()[rows])


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt", "t5", "bart"])
def test_the_first_kl_of_a_float64_model_is_0(name):
    assert first_kl(tiny.trainer(tiny.with_value_head(name).double())) == 0.0


@pytest.mark.parametrize(
    ("kind", "name", "what"),
    [
        ("causal", "mixtral", "MixtralForCausalLM does not run in float64: .*Double"),
        ("causal", "qwen3_next", "Qwen3NextForCausalLM does not run in float64"),
        ("causal", "prophetnet", "not finite"),
        ("seq2seq", "prophetnet", "not finite"),
    ],
)
def test_models_that_know_no_float64_are_named_with_what_to_do(kind, name, what):
    model = wrapped(small_model(kind, name).double())
    with pytest.raises(ValueError, match=f"{what}.*float32, with from_pretrained.*dtype=torch.float32.*float()"):
        tiny.trainer(model)
    tiny.trainer(model.float())


@pytest.mark.parametrize("build", [openai_gpt, mamba, rwkv, modernbert])
def test_bottom_layers_are_shared_whatever_they_are_called(build):
    """Mini-batches of different width are cut from the recorded hidden states: openai-gpt asks for a view of them."""
    torch.manual_seed(0)
    config = tiny.config(mini_batch_size=2)
    trainer = PPOTrainer(config, wrapped(build()), None, tiny.tokenizer(), num_shared_layers=1)
    own = dict(trainer.model.named_parameters())
    shared = [name for name, other in trainer.ref_model.named_parameters() if own[name] is other]
    assert shared
    assert not any(own[name].requires_grad for name in shared)
    assert any(parameter.requires_grad for parameter in trainer.model.pretrained_model.parameters())
    assert first_kl(trainer) == 0.0


def test_layers_that_are_not_found_come_with_advice_that_works():
    with pytest.raises(ValueError, match=r"create_reference_model\(model, num_shared_layers=.*pass the result as ref"):
        PPOTrainer(tiny.config(), tiny.with_value_head("gpt2"), None, tiny.tokenizer(), num_shared_layers=9)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_adapters_on_the_input_embedding(name, kind):
    torch.manual_seed(0)
    top = "c_attn" if name == "gpt2" else "q_proj"
    embedding = "wte" if name == "gpt2" else "embed_tokens"
    options = {"target_modules": [top, embedding]} if kind == "lora" else {"target_modules": [top]}
    if kind == "tokens":
        options["trainable_token_indices"] = [4]
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, fan_in_fan_out=name == "gpt2", **options)
    trainer = tiny.trainer(wrapped(tiny.CAUSAL[name](), peft_config=adapter), learning_rate=1e-2)
    trainer.generate(tiny.batch()[0], max_new_tokens=3, do_sample=True, top_k=0)
    assert first_kl(trainer) == 0.0


@pytest.mark.parametrize("collator", [False, True])
def test_a_padding_token_without_an_embedding_is_masked_like_any_other(collator):
    """It was added to the tokenizer, and the model not resized."""
    numbers = []
    for added in (False, True):
        tokenizer = tiny.tokenizer()
        if added:
            tokenizer.add_special_tokens({"pad_token": "<pad>"})
        collate = DataCollatorWithPadding(tokenizer) if collator else None
        model = tiny.with_value_head("gpt2")
        trainer = PPOTrainer(tiny.config(), model, None, tokenizer, training_data_collator=collate)
        torch.manual_seed(1)
        limits = iter(range(1, 9))
        responses = trainer.generate(
            tiny.batch()[0], lambda limits=limits: next(limits), return_prompt=False, do_sample=True, top_k=0
        )
        stats = trainer.step(tiny.batch()[0], responses, tiny.batch()[2])
        numbers.append((stats["objective/kl"], stats["ppo/loss/total"]))
    assert numbers[0] == numbers[1]
    assert numbers[0][0] == 0.0


@pytest.mark.parametrize(("policy", "reference"), [("gpt2", "t5"), ("t5", "gpt2")])
def test_a_reference_of_another_kind_is_named(policy, reference):
    with pytest.raises(ValueError, match=r"model is an? .* and ref_model is an? .*Leave ref_model out"):
        tiny.trainer(policy, tiny.with_value_head(reference))


def test_a_reference_with_a_smaller_vocabulary_is_named():
    trainer = tiny.trainer()
    trainer.ref_model.pretrained_model.resize_token_embeddings(40)
    with pytest.raises(ValueError, match=r"queries\[2\] contains token id 45, outside the ref_model's vocab"):
        trainer.step(*tiny.batch())
