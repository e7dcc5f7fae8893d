"""Names and modules that the packages of TRL 0.7's time had elsewhere.

`rewrite.py` applies the tables to a script's text, `old/names.py` to a running script.
"""

from __future__ import annotations

from collections.abc import Mapping

Place = tuple[str, str]
"""A module and a name in it."""

_HERE = "trl_step.port.stand_ins"
_ROOT = ("transformers", "transformers.utils", "transformers.file_utils")
_GENERATION = ("transformers", "transformers.generation", "transformers.generation.utils")
_TRAINING = ("transformers", "transformers.trainer_utils", "transformers.training_args")
_HF_CACHE = ("huggingface_hub.constants", "HF_HUB_CACHE")
_TPU = ("transformers.utils", "is_torch_tpu_available")
_OUTPUTS = {
    "GreedySearchDecoderOnlyOutput": "GenerateDecoderOnlyOutput",
    "SampleDecoderOnlyOutput": "GenerateDecoderOnlyOutput",
    "BeamSearchDecoderOnlyOutput": "GenerateBeamDecoderOnlyOutput",
    "BeamSampleDecoderOnlyOutput": "GenerateBeamDecoderOnlyOutput",
    "GreedySearchEncoderDecoderOutput": "GenerateEncoderDecoderOutput",
    "SampleEncoderDecoderOutput": "GenerateEncoderDecoderOutput",
    "BeamSearchEncoderDecoderOutput": "GenerateBeamEncoderDecoderOutput",
    "BeamSampleEncoderDecoderOutput": "GenerateBeamEncoderDecoderOutput",
    "GreedySearchOutput": "GenerateNonBeamOutput",
    "SampleOutput": "GenerateNonBeamOutput",
    "BeamSearchOutput": "GenerateBeamOutput",
    "BeamSampleOutput": "GenerateBeamOutput",
}

_GROUPS: tuple[tuple[tuple[str, ...], Mapping[str, Place]], ...] = (
    (
        ("transformers",),
        {
            "load_tool": ("trl_step.port.tools", "load_tool"),
            "Tool": ("trl_step.port.tools", "Tool"),
            "AutoModelForVision2Seq": ("transformers", "AutoModelForImageTextToText"),
            "BloomTokenizerFast": ("transformers", "PreTrainedTokenizerFast"),
            "MT5Tokenizer": ("transformers", "T5Tokenizer"),
            "MT5TokenizerFast": ("transformers", "T5TokenizerFast"),
            "SpecialTokensMixin": ("transformers", "PreTrainedTokenizerBase"),
        },
    ),
    (("transformers", "transformers.optimization"), {"AdamW": (_HERE, "AdamW")}),
    (_GENERATION, {"top_k_top_p_filtering": ("trl_step.core", "top_k_top_p_filtering")}),
    ((*_GENERATION, "transformers.generation.logits_process"), {"LogitsWarper": ("transformers", "LogitsProcessor")}),
    (_GENERATION[1:], {old: ("transformers.generation.utils", new) for old, new in _OUTPUTS.items()}),
    (_TRAINING, {"EvaluationStrategy": ("transformers.trainer_utils", "IntervalStrategy")}),
    (
        ("transformers", "transformers.file_utils", "transformers.trainer", "transformers.trainer_utils"),
        {"is_torch_tpu_available": _TPU},
    ),
    (
        _ROOT,
        {
            "is_tf_available": (_HERE, "is_tf_available"),
            "is_flax_available": (_HERE, "is_flax_available"),
            "is_ipex_available": (_HERE, "is_ipex_available"),
            "is_auto_gptq_available": (_HERE, "is_auto_gptq_available"),
            "is_jieba_available": (_HERE, "is_jieba_available"),
            "is_safetensors_available": (_HERE, "is_safetensors_available"),
            "is_torch_sdpa_available": (_HERE, "is_torch_sdpa_available"),
            "is_torch_fx_available": (_HERE, "is_torch_fx_available"),
            "is_torchdynamo_available": (_HERE, "is_torchdynamo_available"),
            "is_torch_bf16_cpu_available": (_HERE, "is_torch_bf16_cpu_available"),
            "is_torch_bf16_available": ("transformers.utils", "is_torch_bf16_gpu_available"),
            "is_flash_attn_available": ("transformers.utils", "is_flash_attn_2_available"),
            "send_example_telemetry": (_HERE, "send_example_telemetry"),
            "get_full_repo_name": ("huggingface_hub", "get_full_repo_name"),
            "is_offline_mode": ("huggingface_hub", "is_offline_mode"),
            "cached_property": ("functools", "cached_property"),
            "TRANSFORMERS_CACHE": _HF_CACHE,
            "PYTORCH_PRETRAINED_BERT_CACHE": _HF_CACHE,
            "default_cache_path": _HF_CACHE,
        },
    ),
    (
        ("transformers.trainer",),
        {
            "ALL_LAYERNORM_LAYERS": ("transformers.pytorch_utils", "ALL_LAYERNORM_LAYERS"),
            "AcceleratorConfig": ("transformers.trainer_pt_utils", "AcceleratorConfig"),
            "is_apex_available": ("transformers.utils", "is_apex_available"),
            "is_deepspeed_zero3_enabled": ("transformers.integrations.deepspeed", "is_deepspeed_zero3_enabled"),
        },
    ),
    (
        ("transformers.modeling_utils",),
        {
            "PretrainedConfig": ("transformers", "PretrainedConfig"),
            "Conv1D": ("transformers.pytorch_utils", "Conv1D"),
            "apply_chunking_to_forward": ("transformers.pytorch_utils", "apply_chunking_to_forward"),
            "load_sharded_checkpoint": ("transformers.trainer_utils", "load_sharded_checkpoint"),
            "no_init_weights": ("transformers.initialization", "no_init_weights"),
        },
    ),
    (("transformers.tokenization_utils",), {"PreTrainedTokenizerBase": ("transformers", "PreTrainedTokenizerBase")}),
    *(
        (
            (f"transformers.models.{model.lower()}.modeling_{model.lower()}",),
            {f"{model}{kind}": (_HERE, "KindOfAttention") for kind in ("FlashAttention2", "SdpaAttention")},
        )
        for model in ("Llama", "Mistral", "Mixtral", "Gemma", "Phi", "Qwen2")
    ),
    (
        ("transformers.models.auto.modeling_auto",),
        {
            "MODEL_FOR_VISION_2_SEQ_MAPPING_NAMES": (
                "transformers.models.auto.modeling_auto",
                "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
            )
        },
    ),
    (
        ("peft", "peft.utils", "peft.utils.other"),
        {
            "prepare_model_for_int8_training": ("peft", "prepare_model_for_kbit_training"),
            "prepare_model_for_training": ("peft", "prepare_model_for_kbit_training"),
        },
    ),
    (
        ("peft.mapping",),
        {
            "get_peft_model": ("peft", "get_peft_model"),
            "MODEL_TYPE_TO_PEFT_MODEL_MAPPING": ("peft", "MODEL_TYPE_TO_PEFT_MODEL_MAPPING"),
        },
    ),
    (("peft.utils",), {"PromptLearningConfig": ("peft", "PromptLearningConfig")}),
    (
        ("accelerate.utils",),
        {
            "is_tpu_available": _TPU,
            "is_ipex_available": (_HERE, "is_ipex_available"),
            "is_safetensors_available": (_HERE, "is_safetensors_available"),
        },
    ),
    (
        ("datasets", "datasets.load"),
        {"load_metric": ("evaluate", "load"), "Metric": ("evaluate", "Metric")},
    ),
    (
        ("datasets", "datasets.utils"),
        {
            "set_caching_enabled": (_HERE, "set_caching_enabled"),
            "GenerateMode": ("datasets", "DownloadMode"),
            "temp_seed": ("datasets.utils.py_utils", "temp_seed"),
        },
    ),
    (("datasets.utils",), {"DownloadManager": ("datasets", "DownloadManager")}),
)
_CHATS = (
    "is_conversational", "apply_chat_template", "maybe_apply_chat_template", "extract_prompt", "maybe_extract_prompt",
    "unpair_preference_dataset", "maybe_unpair_preference_dataset",
)  # fmt: skip
_ASKED = (
    "is_liger_kernel_available", "is_liger_available", "is_llmblender_available", "is_openai_available",
    "is_pil_available", "is_sklearn_available",
)  # fmt: skip
_OF_TRL: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "trl_step": {
        "trl_step.port.data_utils": _CHATS,
        _HERE: _ASKED,
        "trl_step.commands.cli_utils": ("TrlParser", "SFTScriptArguments", "DPOScriptArguments", "init_zero_verbose"),
        "trl_step.models": ("SUPPORTED_ARCHITECTURES",),
    },
    "trl_step.commands": {
        "trl_step.commands.cli_utils": ("TrlParser", "SFTScriptArguments", "DPOScriptArguments", "init_zero_verbose"),
    },
    "trl_step.import_utils": {_HERE: _ASKED},
    "trl_step.extras.best_of_n_sampler": {"trl_step.models": ("SUPPORTED_ARCHITECTURES",)},
    "trl_step.models.modeling_base": {
        "trl_step": ("is_npu_available", "is_peft_available", "is_xpu_available"),
        "trl_step.import_utils": ("is_transformers_greater_than",),
    },
    "trl_step.models.modeling_value_head": {"trl_step": ("PreTrainedModelWrapper",)},
    "trl_step.models.utils": {
        "trl_step": (
            "AutoModelForCausalLMWithValueHead", "AutoModelForSeq2SeqLMWithValueHead", "PreTrainedModelWrapper",
        ),
        "trl_step.models": ("SUPPORTED_ARCHITECTURES",),
    },
    "trl_step.trainer.callbacks": {"trl_step.models": ("unwrap_model_for_generation",)},
    "trl_step.trainer.ddpo_trainer": {"trl_step.trainer": ("BaseTrainer",)},
    "trl_step.trainer.dpo_trainer": {
        "trl_step": ("DPOConfig", "PreTrainedModelWrapper", "create_reference_model", "is_peft_available"),
        "trl_step.trainer": ("RunningMoments", "peft_module_casting_to_bf16"),
        "trl_step.trainer.utils": ("pad_to_length", "trl_sanitze_kwargs_for_tagging"),
    },
    "trl_step.trainer.iterative_sft_trainer": {
        "trl_step": ("is_peft_available",),
        "trl_step.core": ("PPODecorators",),
        "trl_step.trainer.utils": ("trl_sanitze_kwargs_for_tagging",),
    },
    "trl_step.trainer.ppo_config": {"trl_step": ("is_wandb_available",), "trl_step.trainer.utils": ("exact_div",)},
    "trl_step.trainer.ppo_trainer": {
        "trl_step.import_utils": ("is_torch_greater_2_0",),
        "trl_step.models": ("unwrap_model_for_generation",),
    },
    "trl_step.trainer.reward_trainer": {
        "trl_step": ("is_peft_available",),
        "trl_step.trainer.utils": ("trl_sanitze_kwargs_for_tagging",),
    },
    "trl_step.trainer.sft_trainer": {
        "trl_step": ("RichProgressCallback", "SFTConfig", "is_peft_available"),
        "trl_step.trainer": ("peft_module_casting_to_bf16",),
        "trl_step.trainer.utils": ("trl_sanitze_kwargs_for_tagging",),
    },
    "trl_step.trainer.utils": {
        "trl_step": ("is_peft_available", "is_xpu_available"),
        "trl_step.import_utils": ("is_unsloth_available",),
        "trl_step.trainer.on_policy.config": ("OnPolicyConfig",),
    },
    "trl_step.trainer.ppov2_trainer": {
        "trl_step.core": ("masked_mean",),
        "trl_step.models": ("unwrap_model_for_generation",),
        "trl_step.trainer": ("disable_dropout_in_model",),
        "trl_step.trainer.utils": ("exact_div",),
    },
    "trl_step.trainer.rloo_trainer": {
        "trl_step.models": ("unwrap_model_for_generation",),
        "trl_step.trainer": ("disable_dropout_in_model",),
        "trl_step.trainer.utils": ("exact_div",),
    },
}  # fmt: skip
"""Module of TRL 0.7 to 0.11 -> module of today -> names that the old one had too, mostly because it imported them."""


MOVED: Mapping[Place, Place] = {
    **{(module, old): place for modules, names in _GROUPS for module in modules for old, place in names.items()},
    **{(old, name): (new, name) for old, homes in _OF_TRL.items() for new, names in homes.items() for name in names},
}
"""(module, name) that no longer exists, and where the same thing, or what stands for it, is today."""

MOVED_MODULES: Mapping[str, str] = {
    "transformers.deepspeed": "transformers.integrations.deepspeed",
    "transformers.generation_utils": "transformers.generation.utils",
    "transformers.generation_logits_process": "transformers.generation.logits_process",
    "transformers.generation_stopping_criteria": "transformers.generation.stopping_criteria",
    "transformers.utils.bitsandbytes": "transformers.integrations.bitsandbytes",
    "transformers.models.llama.tokenization_llama_fast": "transformers.models.llama.tokenization_llama",
    "peft.utils.config": "peft.config",
    "huggingface_hub.utils._errors": "huggingface_hub.errors",
    "diffusers.modeling_utils": "diffusers.models.modeling_utils",
    "diffusers.pipeline_utils": "diffusers.pipelines.pipeline_utils",
    "diffusers.models.cross_attention": "diffusers.models.attention_processor",
    "diffusers.models.unet_2d_condition": "diffusers.models.unets.unet_2d_condition",
}
"""Module that no longer exists, and the module that has its names today."""

MOVED_IMPORTS: Mapping[Place, Place] = {
    **MOVED,
    **{tuple(old.rsplit(".", 1)): tuple(new.rsplit(".", 1)) for old, new in MOVED_MODULES.items()},  # type: ignore[misc]
}
"""What `from module import name` finds elsewhere."""

_TEXTS = 'use datasets.load_dataset("text", data_files=...)'
_GENERATE = "load the model and call its generate"
_BEAMS = "generate(num_beams=...) searches with beams"
_LOOPS = "the trainers here have loops of their own: copy it, or override their methods"
BY_HAND: Mapping[Place, str] = {
    **{
        ("trl_step.trainer.utils", name): _LOOPS
        for name in (
            "batch_generation",
            "first_true_indices",
            "forward",
            "generate",
            "get_reward",
            "prepare_deepspeed",
            "print_rich_table",
            "truncate_response",
            "truncate_right",
            "OnlineTrainerState",
            "OnpolicyRuntimeConfig",
        )
    },
    ("transformers", "AutoModelWithLMHead"): "use AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM",
    ("transformers", "TextDataset"): _TEXTS,
    ("transformers", "LineByLineTextDataset"): _TEXTS,
    ("transformers", "Text2TextGenerationPipeline"): _GENERATE,
    ("transformers", "SummarizationPipeline"): _GENERATE,
    ("transformers", "TranslationPipeline"): _GENERATE,
    ("transformers", "Conversation"): "use tokenizer.apply_chat_template",
    ("transformers", "ConversationalPipeline"): "use tokenizer.apply_chat_template",
    ("transformers", "BeamScorer"): _BEAMS,
    ("transformers", "BeamSearchScorer"): _BEAMS,
    ("transformers", "MaxNewTokensCriteria"): "use MaxLengthCriteria, or generate(max_new_tokens=...)",
    ("transformers", "DataCollatorForWholeWordMask"): "use DataCollatorForLanguageModeling(whole_word_mask=True)",
    ("datasets", "list_datasets"): "use huggingface_hub.list_datasets, which gives objects with an id",
    ("huggingface_hub", "HfFolder"): "use get_token() and login()",
    ("huggingface_hub", "Repository"): "use HfApi",
    ("huggingface_hub", "cached_download"): "use hf_hub_download",
}
"""(module, name) that nothing stands for today, and what to do."""

RENAMED_METHODS: Mapping[str, str] = {"batch_encode_plus": "__call__", "encode_plus": "__call__"}
"""Removed methods of a tokenizer; calling the tokenizer does the same."""

RENAMED_ATTRIBUTES: Mapping[str, str] = {
    "additional_special_tokens": "extra_special_tokens",
    "additional_special_tokens_ids": "extra_special_tokens_ids",
}
"""Attributes of a tokenizer that have another name today."""
