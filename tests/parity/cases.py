"""The table of parity cases: which models, which options, which inputs are run through release 0.7.11.

Plain Python, importable beside either library: the recorder reads it in the environment of the reference release, the
replay in today's. The recorded inputs and weights are data (`data/`); here stands only what a person chooses.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VOCABULARY_SIZE = 50
PAD_ID, EOS_ID, UNKNOWN_ID = 0, 1, 2
BATCH_SIZE = 8
STEPS = 3

# Gradients that vanish analytically (attention key biases) are rounding noise of about 1e-9. Adam with its usual
# eps = 1e-8 turns that noise into moves of the size of the learning rate; this one does not.
ADAM_EPS = 1e-3

# What every case starts from. The short horizon lets the adaptive controller move visibly within three steps.
COMMON_CONFIG: dict[str, Any] = {
    "batch_size": BATCH_SIZE,
    "mini_batch_size": 4,
    "ppo_epochs": 3,
    "learning_rate": 3e-3,
    "horizon": 100,
    "seed": 0,
}


@dataclass(frozen=True)
class Shape:
    """One tiny model: names of transformers' classes and what they are built with.

    `weights` names the recorded initial weights; shapes that differ in nothing but dropout share them.
    `seed` draws those weights: with an unlucky one some token sits on the edge of a clip, where rounding decides.
    `untied` gives the head a weight of its own; transformers 5 does so only when it loads such a checkpoint.
    `renamed` maps a recorded parameter name's ending (transformers 4.37) to today's.
    """

    config_class: str
    model_class: str
    config: dict[str, Any]
    weights: str
    seed: int = 0
    encoder_decoder: bool = False
    untied: bool = False
    value_head: dict[str, Any] = field(default_factory=lambda: {"summary_dropout_prob": 0.0})
    lora: dict[str, Any] | None = None
    renamed: dict[str, str] = field(default_factory=dict)


_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 32,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
}
_GPT2_NO_DROPOUT = {**_GPT2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_GPT2_DROPOUT = {**_GPT2, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "max_position_embeddings": 24,
    "bos_token_id": EOS_ID,
    "eos_token_id": EOS_ID,
}
_OPT: dict[str, Any] = {
    **_DECODER,
    "num_attention_heads": 2,
    "ffn_dim": 32,
    "pad_token_id": PAD_ID,
    "dropout": 0.0,
}
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_heads": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "pad_token_id": PAD_ID,
    "eos_token_id": EOS_ID,
    "decoder_start_token_id": PAD_ID,
}
_LORA = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none"}

SHAPES: dict[str, Shape] = {
    "gpt2": Shape("GPT2Config", "GPT2LMHeadModel", _GPT2_NO_DROPOUT, weights="gpt2"),
    "gpt2-dropout": Shape(
        "GPT2Config",
        "GPT2LMHeadModel",
        _GPT2_DROPOUT,
        weights="gpt2",
        value_head={"summary_dropout_prob": 0.1},
    ),
    "gpt2-lora": Shape(
        "GPT2Config",
        "GPT2LMHeadModel",
        _GPT2_NO_DROPOUT,
        weights="gpt2-lora",
        lora={**_LORA, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"},
    ),
    "gpt_neox": Shape(
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        {**_DECODER, "num_attention_heads": 2, "intermediate_size": 32, "rotary_pct": 0.5},
        weights="gpt_neox",
        renamed={"embed_out.weight": "lm_head.weight"},
    ),
    "llama": Shape(
        "LlamaConfig",
        "LlamaForCausalLM",
        {
            **_DECODER,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "pad_token_id": PAD_ID,
        },
        weights="llama",
    ),
    "opt": Shape("OPTConfig", "OPTForCausalLM", {**_OPT, "word_embed_proj_dim": 16}, weights="opt"),
    # hidden states leave the decoder narrower than they are inside it, as in the 350m model
    "opt-projection": Shape(
        "OPTConfig",
        "OPTForCausalLM",
        {**_OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
        weights="opt-projection",
    ),
    "t5": Shape("T5Config", "T5ForConditionalGeneration", _T5, weights="t5", encoder_decoder=True),
    "t5-dropout": Shape(
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "dropout_rate": 0.1},
        weights="t5",
        encoder_decoder=True,
        value_head={"summary_dropout_prob": 0.1},
    ),
    # an untied head: the decoder's hidden states are not scaled before it
    "t5-untied": Shape(
        "T5Config",
        "T5ForConditionalGeneration",
        {**_T5, "tie_word_embeddings": False, "feed_forward_proj": "gated-gelu"},
        weights="t5-untied",
        seed=1,
        encoder_decoder=True,
        untied=True,
    ),
    "t5-lora": Shape(
        "T5Config",
        "T5ForConditionalGeneration",
        _T5,
        weights="t5-lora",
        encoder_decoder=True,
        lora={**_LORA, "target_modules": ["q", "v"], "task_type": "SEQ_2_SEQ_LM"},
    ),
    "bart": Shape(
        "BartConfig",
        "BartForConditionalGeneration",
        {
            "vocab_size": VOCABULARY_SIZE,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "max_position_embeddings": 24,
            "dropout": 0.0,
            "pad_token_id": PAD_ID,
            "bos_token_id": UNKNOWN_ID,
            "eos_token_id": EOS_ID,
            "decoder_start_token_id": EOS_ID,
            "forced_eos_token_id": None,
        },
        weights="bart",
        encoder_decoder=True,
    ),
}


@dataclass(frozen=True)
class Case:
    """One run of three steps.

    Attributes:
        name: file name of the recording.
        shape: key of `SHAPES`.
        inputs: name of the recorded queries, responses, scores and masks (`recording.load_inputs`).
        config: fields of `PPOConfig` over `COMMON_CONFIG`.
        reference: "perturbed" passes a reference model with other weights than the policy; "none" passes none.
        num_shared_layers: argument of the trainer, with reference "none".
        padding_side: of the tokenizer.
        optimizer: "adam" passes an Adam with `ADAM_EPS`; "default" leaves the choice to the trainer.
        scheduler: whether a learning-rate scheduler is passed (lr of step k = lr / (1 + k)).
        score_dims: 0 passes scores as 0-d tensors, 1 as tensors of one element.
        compare_to: the case that has everything equal but the option under test; None for one that stands alone.
        equal: what the option must do next to `compare_to`: False changes the numbers, True leaves them as they are.
    """

    name: str
    shape: str = "gpt2"
    inputs: str = "causal"
    config: dict[str, Any] = field(default_factory=dict)
    reference: str = "perturbed"
    num_shared_layers: int | None = None
    padding_side: str = "right"
    optimizer: str = "adam"
    scheduler: bool = False
    score_dims: int = 0
    compare_to: str | None = None
    equal: bool = False

    @property
    def ppo_config(self) -> dict[str, Any]:
        """The keyword arguments of `PPOConfig`."""
        merged = {**COMMON_CONFIG, **self.config}
        if "forward_batch_size" in self.config:
            del merged["mini_batch_size"]
        return merged


def _gpt2(option: str, *, equal: bool = False, beside: str = "gpt2", **fields: Any) -> Case:
    """A GPT-2 case that differs from the case `beside` in one option."""
    return Case(f"gpt2-{option}", compare_to=beside, equal=equal, **fields)


def _t5(option: str, *, equal: bool = False, **fields: Any) -> Case:
    """A T5 case that differs from the plain one in one option."""
    return Case(f"t5-{option}", **{"shape": "t5", "inputs": "t5", **fields}, compare_to="t5", equal=equal)


_SHAPE_CASES = [
    Case("gpt2"),
    Case("gpt_neox", shape="gpt_neox"),
    Case("llama", shape="llama"),
    Case("opt", shape="opt"),
    Case("opt-projection", shape="opt-projection"),
    Case("t5", shape="t5", inputs="t5"),
    Case("t5-untied", shape="t5-untied", inputs="t5"),
    Case("bart", shape="bart", inputs="bart"),
    Case("gpt_neox-left", shape="gpt_neox", padding_side="left", compare_to="gpt_neox", equal=True),
    Case("llama-left", shape="llama", padding_side="left", compare_to="llama", equal=True),
    Case("opt-left", shape="opt", padding_side="left", compare_to="opt", equal=True),
    Case("bart-no-reference", shape="bart", inputs="bart", reference="none", compare_to="bart"),
]

_GPT2_CASES = [
    _gpt2("kl-abs", config={"kl_penalty": "abs"}),
    _gpt2("kl-mse", config={"kl_penalty": "mse"}),
    _gpt2("kl-full", config={"kl_penalty": "full"}),
    _gpt2("kl-fixed", config={"adap_kl_ctrl": False}),
    _gpt2("kl-coef", config={"init_kl_coef": 0.05}),
    _gpt2("kl-target", config={"kl_penalty": "mse", "target": 0.75}, beside="gpt2-kl-mse"),
    _gpt2("kl-horizon", config={"horizon": 30}),
    _gpt2("score-scaling", config={"use_score_scaling": True}),
    _gpt2("score-scaling-norm", config={"use_score_scaling": True, "use_score_norm": True}),
    _gpt2("score-norm-alone", config={"use_score_norm": True}, equal=True),
    _gpt2("score-clip", config={"score_clip": 0.8}),
    _gpt2("score-one-element", score_dims=1, equal=True),
    _gpt2("whiten-rewards", config={"whiten_rewards": True}),
    _gpt2("gamma", config={"gamma": 0.9}),
    _gpt2("lam", config={"lam": 0.6}),
    _gpt2("cliprange", config={"cliprange": 0.02}),
    _gpt2("cliprange-value", config={"cliprange_value": 0.02}),
    _gpt2("vf-coef", config={"vf_coef": 0.5}),
    _gpt2("epochs-1", config={"ppo_epochs": 1}),
    # responses of two tokens or more: the release's variances of a single token are NaN
    Case("gpt2-mini-batch-1", inputs="causal-two-tokens", config={"mini_batch_size": 1}),
    _gpt2("mini-batch-8", config={"mini_batch_size": 8}),
    _gpt2("forward-batch", config={"forward_batch_size": 2}),
    _gpt2("accumulation", config={"mini_batch_size": 2, "gradient_accumulation_steps": 2}),
    _gpt2("seed", config={"seed": 7}),
    _gpt2("ratio-threshold", config={"ratio_threshold": 1.01}),
    _gpt2("early-stopping", config={"early_stopping": True, "target_kl": 0.003}),
    _gpt2("scheduler", scheduler=True),
    _gpt2("max-grad-norm", config={"max_grad_norm": 0.05}),
    _gpt2("masks", inputs="causal-masks"),
    _gpt2("left", padding_side="left"),
    _gpt2("special-tokens", inputs="causal-special"),
    _gpt2("special-tokens-left", inputs="causal-special", padding_side="left", beside="gpt2-left"),
    _gpt2("dropout", shape="gpt2-dropout", equal=True),
    _gpt2("no-reference", reference="none"),
    _gpt2("shared-layers", reference="none", num_shared_layers=1, beside="gpt2-no-reference"),
    Case("gpt2-lora", shape="gpt2-lora", reference="none"),
    _gpt2("lora-passed-reference", shape="gpt2-lora", beside="gpt2-lora", equal=True),
    # the trainer's own optimizer, on the one shape whose parameters all have gradients well above rounding
    Case("llama-default-optimizer", shape="llama", optimizer="default", config={"learning_rate": 1e-3}),
]

_GPT2_COMBINATIONS = [
    Case(
        "gpt2-combination-scores",
        config={
            "use_score_scaling": True,
            "use_score_norm": True,
            "score_clip": 0.5,
            "whiten_rewards": True,
            "kl_penalty": "abs",
            "mini_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.05,
        },
        scheduler=True,
    ),
    # left padding and masks together are no case: release 0.7.11 ends in an IndexError or a size mismatch there
    Case(
        "gpt2-combination-full-left",
        padding_side="left",
        config={
            "kl_penalty": "full",
            "adap_kl_ctrl": False,
            "early_stopping": True,
            "target_kl": 0.003,
            "seed": 3,
            "gamma": 0.95,
            "lam": 0.9,
        },
    ),
    Case(
        "gpt2-combination-lora-masks",
        shape="gpt2-lora",
        inputs="causal-masks",
        reference="none",
        config={"kl_penalty": "full", "whiten_rewards": True, "max_grad_norm": 0.05},
        scheduler=True,
    ),
    Case(
        "gpt2-combination-skips",
        reference="none",
        num_shared_layers=1,
        config={
            "ratio_threshold": 1.01,
            "mini_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "use_score_scaling": True,
            "kl_penalty": "mse",
        },
    ),
]

_T5_CASES = [
    _t5("kl-full", config={"kl_penalty": "full"}),
    _t5("whiten-rewards", config={"whiten_rewards": True}),
    _t5("accumulation", config={"mini_batch_size": 2, "gradient_accumulation_steps": 2}),
    _t5("masks", inputs="t5-masks"),
    _t5("dropout", shape="t5-dropout", equal=True),
    _t5("no-reference", reference="none"),
    # Responses of one length: padded on the left the release counts padding as decoder positions that see no token
    # at all, and what comes out of those differs between versions of transformers.
    Case("t5-left", shape="t5", inputs="t5-equal-lengths", padding_side="left"),
    Case("bart-equal-lengths", shape="bart", inputs="bart-equal-lengths"),
    Case(
        "bart-left",
        shape="bart",
        inputs="bart-equal-lengths",
        padding_side="left",
        compare_to="bart-equal-lengths",
    ),
    Case("t5-lora", shape="t5-lora", inputs="t5", reference="none"),
    Case(
        "t5-combination",
        shape="t5",
        inputs="t5-masks",
        config={
            "kl_penalty": "mse",
            "use_score_scaling": True,
            "score_clip": 0.5,
            "whiten_rewards": True,
            "mini_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "max_grad_norm": 0.05,
        },
        scheduler=True,
    ),
]

CASES: dict[str, Case] = {case.name: case for case in [*_SHAPE_CASES, *_GPT2_CASES, *_GPT2_COMBINATIONS, *_T5_CASES]}


def description(case: Case) -> dict[str, Any]:
    """Everything in this file that the numbers of a case depend on."""
    row, shape = asdict(case), asdict(SHAPES[case.shape])
    for names_only in ("compare_to", "equal"):
        del row[names_only]
    del shape["renamed"]
    return {**row, "config": case.ppo_config, "shape": shape, "adam_eps": ADAM_EPS, "steps": STEPS}
