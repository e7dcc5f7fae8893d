"""Every causal and encoder-decoder family of transformers through a step of PPO: the table of docs/model-families.md.

    python -m tests.models.families               # prints what each family does; some minutes on two cores
    python -m tests.models.families llama t5      # these only
    python -m tests.models.families --write       # writes the page

Models are made from their configuration class, with two layers of random weights in float32.
"""

from __future__ import annotations

import argparse
import datetime
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    EncoderDecoderConfig,
)
from transformers.models.auto import modeling_auto

from tests import tiny
from tests.benchmark_tables import markdown
from tests.markdown_pages import DOCS
from trl_step import AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead, PPOTrainer
from trl_step.models.probes import BatchMates, batch_mates

PAGE = DOCS / "model-families.md"
MAPPINGS = {
    "causal": (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    "seq2seq": (modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
}
SIZES: dict[str, Any] = {
    **tiny.IDS,
    "vocab_size": tiny.VOCABULARY,
    "sliding_window": 4,
    "is_decoder": True,
    "causal": True,
    "decoder_start_token_id": tiny.BOS,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_dim"), 32),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim", "attention_hidden_size", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "num_blocks", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "index_n_heads"), 2),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("d_ff", "d_inner", "ffn_hidden_size", "dense_intermediate_size", "dff"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 64),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), 64),
    **dict.fromkeys(("src_vocab_size", "tgt_vocab_size"), tiny.VOCABULARY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("head_dim", "v_head_dim", "d_kv", "kv_lora_rank", "q_lora_rank", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "first_k_dense_replace"), 1),
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_chunk_size": 16,
    "linear_num_heads": 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 16),
    "vocab_size_per_layer_input": tiny.VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
    "projection_dim": 32,
}
"""Settings of a small model, each for the families that have it."""

SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
SHARED_BLOCK = {"num_hidden_layers": 3, "layers_block_type": ["linear_attention", "hybrid", "hybrid"]}
NARROW_HEADS = {"head_dim": 8}
SMALL_ENCODER = {"hidden_dim": 32, "dim_head": 16, "input_dim": 16}
OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("afmoe", "cohere2", "cohere2_moe", "exaone4", "exaone_moe", "flint", "gemma3_text"), SLIDING),
    **dict.fromkeys(("kolibri1", "olmo3", "t5gemma2_text", "t5gemma2_decoder"), SLIDING),
    "axk1": NARROW_HEADS,
    "bailing_hybrid": HYBRID,
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_v3": NARROW_HEADS,
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
        "mlp_layer_types": ["hash_moe", "moe"],
    },
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_speech_encoder": SMALL_ENCODER,
    "granite_speech_plus_encoder": SMALL_ENCODER,
    "granitemoehybrid": HYBRID,
    "inkling2_text": {"layer_types": ["hybrid_sliding", "hybrid"]},
    "inkling_text": {"layer_types": ["hybrid_sliding", "hybrid"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": HYBRID,
    "led": {"attention_window": [4, 4]},
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"]},
    "longcat_flash": {"zero_expert_num": 2, **NARROW_HEADS},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    "mimo_v2_flash": {"num_attention_heads": 8, "head_dim": 24},
    "minimax": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2, "indexer_kv_heads": 1,
        "indexer_head_dim": 16, "indexer_budget": 64, "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"],
        "attention_head_size": 16, "feed_forward_size": 64,
    },
    "roc_bert": {"pronunciation_vocab_size": 60, "shape_vocab_size": 60, "concat_input": False},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "youtu": NARROW_HEADS,
    "zamba": {**SHARED_BLOCK, "attention_hidden_size": 64},
    "zamba2": {
        **SHARED_BLOCK, "attention_hidden_size": 64, "attention_head_dim": 32, "mamba_headdim": 16, "chunk_size": 16,
        "n_mamba_heads": 4,
        "adapter_rank": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""What a family needs beside `SIZES`."""

DRAFTS = "drafts tokens for another model, whose hidden states it reads"
MUSIC = "writes sound, in several tokens at each position"
LEFT_OUT = {
    "blt": "transformers fails in its forward pass (`BltConfig` has no `num_hidden_layers`)",
    "dots3_note": "no small configuration of its towers; its text model is `dots3_note_text`",
    "gemma3n": "its tower needs the package timm; its text model is `gemma3n_text`",
    "gemma4_assistant": DRAFTS,
    "gemma4_unified_assistant": DRAFTS,
    "moshi": MUSIC,
    "musicgen": MUSIC,
    "musicgen_melody": MUSIC,
    "nemo_speechlm": "no small configuration of its towers",
    "vibevoice_asr": "no small configuration of its towers",
    "voxtral_realtime": "reads sound at every position, never text alone",
}
"""Families without a row of numbers, and why."""


class Row(NamedTuple):
    """What one family does."""

    kind: str
    """causal or seq2seq: the mapping of transformers"""
    family: str
    architecture: str
    numbers: tuple[float, float, float] | None
    """first KL, first ratio error (the mean distance of the ratios from 1), padding error (log-probs of a sample alone
    against the same beside longer ones)"""
    prompts: str
    """which prompts `generate` runs together, or why there are no numbers"""


MATES = {
    BatchMates.ANY: "all lengths",
    BatchMates.SAME_LENGTH: "one length",
    BatchMates.NONE: "one prompt",
}


def families() -> list[tuple[str, str]]:
    """(mapping, model type) of every family that the installed transformers maps to a language model."""
    return [(kind, name) for kind, (mapping, _) in MAPPINGS.items() for name in mapping]


def small_model(kind: str, name: str) -> Any:
    """A model of the family with random weights, in float32, its matrices far from zero."""
    torch.manual_seed(0)
    model = MAPPINGS[kind][1].from_config(small_config(name)).float()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    return model


def small_config(name: str) -> Any:
    """The family's configuration with `SIZES`, in its parts too, and without dropout."""
    if name == "encoder-decoder":
        sides = (BertConfig(**small_settings(BertConfig)) for _ in range(2))
        config = EncoderDecoderConfig.from_encoder_decoder_configs(*sides)
        config.decoder_start_token_id, config.pad_token_id = tiny.BOS, tiny.PAD
        return config
    config = CONFIG_MAPPING[name](**small_settings(CONFIG_MAPPING[name]))
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = tiny.BOS
    return config


def small_settings(config_class: Any) -> dict[str, Any]:
    """Arguments of a configuration class."""
    default = config_class()
    settings: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        if name in SIZES and (value is not None or name != "decoder_start_token_id"):
            settings[name] = SIZES[name]
        elif "drop" in name and isinstance(value, float):
            settings[name] = 0.0
    for name in config_class.sub_configs:
        part = getattr(default, name, None)
        if part is not None:
            settings[name] = {"model_type": part.model_type, **small_settings(type(part))}
    return {**settings, **OWN.get(config_class.model_type, {})}


def try_family(kind: str, name: str) -> Row:
    """One step on ragged samples, and `generate`; a refusal of this library is a result, any other error is raised."""
    architecture = MAPPINGS[kind][0][name]
    if name in LEFT_OUT:
        return Row(kind, name, architecture, None, f"left out: {LEFT_OUT[name]}")
    model = small_model(kind, name)
    seq2seq = model.config.is_encoder_decoder
    wrapper = AutoModelForSeq2SeqLMWithValueHead if seq2seq else AutoModelForCausalLMWithValueHead
    try:
        trainer = PPOTrainer(tiny.config(), wrapper.from_pretrained(model), None, tiny.tokenizer())
        queries, responses, scores = tiny.batch(seq2seq=seq2seq)
        error = padding_error(trainer, queries, responses)
        answers = trainer.generate(queries, return_prompt=False, max_new_tokens=3, do_sample=True, top_k=0)
        assert all(1 <= len(answer) - seq2seq <= 3 for answer in answers), answers
        stats = trainer.step(queries, responses, scores)
    except ValueError as refusal:
        reason = str(refusal).partition(":")[0]
        return Row(kind, name, architecture, None, f"refused: {reason}")
    numbers = (float(stats["objective/kl"]), float(stats["ppo/policy/ratio_error"]), error)
    return Row(kind, name, architecture, numbers, MATES[batch_mates(model, tiny.PAD)])


def padding_error(trainer: PPOTrainer, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> float:
    """The largest difference between log-probs of a sample by itself and in the padded batch, over all samples."""
    together = logprobs(trainer, queries, responses)
    alone = [logprobs(trainer, [q], [r])[0] for q, r in zip(queries, responses, strict=True)]
    return max(float((one - other).abs().max()) for one, other in zip(together, alone, strict=True))


def logprobs(trainer: PPOTrainer, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of the response tokens, each [R_i]."""
    inputs = trainer.prepare_model_inputs(queries, responses)
    with torch.no_grad():
        found, _, _, mask = trainer.batched_forward_pass(trainer.model, queries, responses, inputs)
    return [row[chosen.bool()] for row, chosen in zip(found, mask, strict=True)]


INTRODUCTION = """# Model families

Which language models of transformers train with `PPOTrainer`. Each family was made from its configuration class, with
two layers, random weights and a vocabulary of 60 tokens, in float32 on a CPU, and made one step on samples of different
lengths.

- **KL**: the first `objective/kl`. The reference is a copy of the policy, so it is 0.
- **ratio**: the first `ppo/policy/ratio_error`, the mean distance of the ratios from 1.
- **padding**: the largest difference between the log-probs of a sample by itself and beside longer ones.
- **prompts**: which prompts `generate` runs together. "All lengths" is fastest. In some families padding, or other
  rows, change what the model says: then only prompts of one length, or one prompt at a time, are run.

A number below 0.00001 is rounding; it is written as 0 where it is below 0.000001. A model of a family that is not
trained by default as a decoder (BERT and others) needs `is_decoder=True` in its configuration, XLM `causal=True`.

`python -m tests.models.families --write` makes this page. This one is from {date}, with transformers {version} and
torch {torch}.
"""
KINDS = {"causal": "Decoders", "seq2seq": "Encoder-decoders, and models of sound that transformers lists with them"}


def page(rows: Iterable[Row]) -> str:
    """The page in Markdown."""
    date = datetime.datetime.now(tz=datetime.timezone.utc).date()
    versions = {"version": transformers.__version__, "torch": torch.__version__.partition("+")[0]}
    parts = [INTRODUCTION.format(date=date, **versions)]
    rows = list(rows)
    for kind, title in KINDS.items():
        own = [row for row in rows if row.kind == kind]
        table = [(row.family, row.architecture, *map(number, row.numbers), row.prompts) for row in own if row.numbers]
        header = ("family", "class", "KL", "ratio", "padding", "prompts")
        parts.append(f"## {title}\n\n{markdown(header, table)}\n")
        others = [(row.family, row.architecture, row.prompts) for row in own if row.numbers is None]
        parts.append(f"Without numbers:\n\n{markdown(('family', 'class', 'why'), others)}\n")
    return "\n".join(parts)


def number(value: float) -> str:
    """Two digits, or 0 for rounding."""
    return "0" if abs(value) < 1e-6 else f"{value:.6f}" if abs(value) < 1e-2 else f"{value:.2g}"


def listed() -> set[tuple[str, str]]:
    """(mapping, model type) of every row of the committed page."""
    found: set[tuple[str, str]] = set()
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        kind = next(kind for kind, title in KINDS.items() if section.startswith(title))
        cells = (line.split(" | ")[0].removeprefix("| ") for line in section.splitlines() if line.startswith("| "))
        found |= {(kind, cell) for cell in cells if cell not in ("family", "---")}
    return found


def main() -> None:
    """Try families, print them, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="model types; all of them if none is given")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    arguments = parser.parse_args()
    if arguments.write and arguments.families:
        parser.error("--write needs all families")
    torch.set_num_threads(1)  # more threads only wait for each other with models of this size
    transformers.logging.set_verbosity_error()
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, name in families():
            if not arguments.families or name in arguments.families:
                rows.append(try_family(kind, name))
                print(*rows[-1], flush=True)
    if arguments.write:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
