"""Tiny models of many architectures, their weights far from zero, for the tests of the models floor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BloomConfig,
    BloomForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from trl_step.models import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead

VOCABULARY = 40
WIDTH = 16
LAYERS = 3
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    **SPECIAL,
}
GEMMA = {**SIZES, "head_dim": 8, "num_key_value_heads": 1}
VISION = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 28,
    "patch_size": 14,
}


def gpt2(**options: Any) -> GPT2LMHeadModel:
    shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2, "n_positions": 32}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **shape, **SPECIAL, **options))


def gemma3() -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=4, **SPECIAL)
    )


def t5() -> T5ForConditionalGeneration:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    )


def bart() -> BartForConditionalGeneration:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
    }
    model = BartForConditionalGeneration(
        BartConfig(vocab_size=VOCABULARY, d_model=WIDTH, max_position_embeddings=32, **sides, **SPECIAL)
    )
    model.final_logits_bias.normal_()
    return model


def bert_to_bert() -> EncoderDecoderModel:
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**SIZES), BertConfig(**SIZES))
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return EncoderDecoderModel(config)


CAUSAL: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "opt_projected": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=24, word_embed_proj_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA, final_logit_softcapping=3.0)),
    "gemma3": gemma3,
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=2, n_head=2)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=3.0)),
}
SEQ2SEQ: dict[str, Callable[[], Any]] = {"t5": t5, "bart": bart, "bert_to_bert": bert_to_bert}


def plain(name: str, seed: int = 0) -> Any:
    """A transformers model by name, in eval mode, every parameter drawn from one wide distribution."""
    torch.manual_seed(seed)
    model = {**CAUSAL, **SEQ2SEQ}[name]()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.eval()


def wrapper_of(name: str) -> Any:
    return AutoModelForSeq2SeqLMWithValueHead if name in SEQ2SEQ else AutoModelForCausalLMWithValueHead


def wrapped(name: str = "gpt2", **kwargs: Any) -> Any:
    """A value-head model by name, in eval mode."""
    return wrapper_of(name).from_pretrained(plain(name), **kwargs).eval()


def inputs_of(name: str = "gpt2", samples: int = 3, positions: int = 6) -> dict[str, torch.Tensor]:
    """Two different sides for an encoder-decoder model."""
    generator = torch.Generator().manual_seed(1)

    def ids(width: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (samples, width), generator=generator)

    own = {"input_ids": ids(positions)}
    own["attention_mask"] = torch.ones_like(own["input_ids"])
    return {**own, "decoder_input_ids": ids(positions - 1)} if name in SEQ2SEQ else own


def some_rows(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A mask [B, S] over the decoder's positions that is neither empty nor regular."""
    ids = inputs.get("decoder_input_ids", inputs["input_ids"])
    return torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4


def lora(**options: Any) -> Any:
    from peft import LoraConfig

    defaults = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    return LoraConfig(**{**defaults, **options})


def shake_adapters(model: Any, seed: int = 5) -> Any:
    """Move the trainable weights away from where they started."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3, generator=generator)
    return model


def trained_adapter(folder: Any, **options: Any) -> Any:
    """A LoRA model with a value head that was trained and saved: base in `folder`/base, adapter in `folder`/adapter."""
    plain("gpt2").save_pretrained(folder / "base")
    base = GPT2LMHeadModel.from_pretrained(folder / "base")
    model = wrapper_of("gpt2").from_pretrained(base, peft_config=lora(**options))
    shake_adapters(model).eval().save_pretrained(folder / "adapter")
    return model


def same_state(first: Any, second: Any) -> bool:
    """Whether two models hold bit-identical tensors under the same names."""
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
