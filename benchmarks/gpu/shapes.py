"""Language models of known shapes with random weights, made on the device."""

from __future__ import annotations

from typing import Any

import torch
from records import Section
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

END = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


def _llama(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, tied: bool) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inner, vocab_size=vocabulary, tie_word_embeddings=tied, max_position_embeddings=2048, **END,
    )  # fmt: skip


SHAPES = {
    "GPT-2 124M": GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **END),
    "Llama 0.5B": _llama(896, 24, 14, 2, 4864, 151_936, tied=True),
    "Llama 1.5B": _llama(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "Llama 8B": _llama(4096, 32, 32, 8, 14_336, 128_256, tied=False),
}
TINY = _llama(32, 2, 4, 2, 64, 500, tied=True)


def language_model(section: Section, shape: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model on the section's device; a tiny one in place of all shapes if the section is."""
    torch.manual_seed(0)
    with torch.device(section.device):
        return AutoModelForCausalLM.from_config(TINY if section.tiny else SHAPES[shape], dtype=dtype)


def adapters() -> Any:
    """LoRA of rank 16 on all matrices of a Llama's layers."""
    from peft import LoraConfig

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=names, task_type="CAUSAL_LM")
