"""What scripts read from the public classes of release 0.7.11 themselves: their attributes, and private methods that
subclasses call or override."""

from __future__ import annotations

import importlib
from typing import Any

import peft
import pytest
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from tests.models.tiny_models import lora, plain
from trl_step import AutoModelForCausalLMWithValueHead, PreTrainedModelWrapper

HEAD_ARGUMENTS = ("summary_dropout_prob", "v_head_initializer_range", "v_head_init_strategy")
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "AutoModelForCausalLMWithValueHead": {
        "transformers_parent_class": AutoModelForCausalLM,
        "lm_head_namings": ["lm_head", "embed_out"],
        "supported_args": HEAD_ARGUMENTS,
        "supported_modules": ("v_head",),
        "supported_rm_modules": ("score",),
    },
    "AutoModelForSeq2SeqLMWithValueHead": {
        "transformers_parent_class": AutoModelForSeq2SeqLM,
        "lm_head_namings": ["lm_head", "embed_out", "output_projection"],
        "supported_args": HEAD_ARGUMENTS,
        "supported_modules": ("v_head",),
        "supported_rm_modules": ("score",),
    },
    "PreTrainedModelWrapper": {
        "transformers_parent_class": None,
        "supported_args": None,
        "supported_modules": ("v_head",),
        "supported_rm_modules": ("score",),
    },
    "PPOTrainer": {"_tag_names": ["trl", "ppo"]},
    "DPOTrainer": {"_tag_names": ["trl", "dpo"]},
    "SFTTrainer": {"_tag_names": ["trl", "sft"]},
    "RewardTrainer": {"_tag_names": ["trl", "reward-trainer"]},
    "DDPOTrainer": {"_tag_names": ["trl", "ddpo"]},
}
METHODS = {
    "PPOTrainer": (
        "_early_stop", "_filter_kwargs", "_generate_batched", "_kl_penalty", "_prepare_deepspeed",
        "_remove_unused_columns", "_save_pretrained", "_set_signature_columns_if_needed", "_show_tokens",
        "_step_safety_checker",
    ),
    "DPOTrainer": ("_prepare_deepspeed",),
    "SFTTrainer": (
        "_prepare_dataset", "_prepare_non_packed_dataloader", "_prepare_packed_dataloader", "_trl_activate_neftune",
    ),
    "IterativeSFTTrainer": ("_maybe_log_save_evaluate", "_step_safety_checker"),
    "DDPOTrainer": (
        "_config_check", "_generate_samples", "_load_model_hook", "_save_model_hook", "_save_pretrained",
        "_setup_optimizer",
    ),
    "AutoModelForCausalLMWithValueHead": ("_get_current_device", "_init_weights", "_split_kwargs"),
}  # fmt: skip
LEFT_OUT = {
    "PPOTrainer": {"_hub_mixin_info": "trainers do not derive from huggingface_hub's PyTorchModelHubMixin"},
    "DDPOTrainer": {
        "_train_batched_samples": "the loop over an epoch's samples has another form; `calculate_loss` and `loss` stay",
    },
    "AutoModelForSeq2SeqLMWithValueHead": {"_has_lm_head": "the model is asked for its output embedding"},
    "AutoModelForCausalLMWithValueHead": {"_get_checkpoint_from_hub": "it loads pickles; see `models.checkpoints`"},
}
"""Private attributes of release 0.7.11 that are not here, and why."""


@pytest.mark.parametrize("name", sorted(ATTRIBUTES))
def test_class_attributes_are_those_of_the_release(name: str) -> None:
    found = getattr(importlib.import_module("trl_step"), name)
    for attribute, expected in ATTRIBUTES[name].items():
        assert getattr(found, attribute) == expected, attribute
        assert type(getattr(found, attribute)) is type(expected), attribute


@pytest.mark.parametrize("name", sorted({*METHODS, *LEFT_OUT}))
def test_private_methods_are_there_or_left_out_with_a_reason(name: str) -> None:
    found = getattr(importlib.import_module("trl_step"), name)
    assert [method for method in METHODS.get(name, ()) if not callable(getattr(found, method, None))] == []
    assert [attribute for attribute in LEFT_OUT.get(name, ()) if hasattr(found, attribute)] == []


def test_peft_models_are_among_the_supported_ones() -> None:
    supported = PreTrainedModelWrapper.supported_pretrained_model_architectures
    assert isinstance(plain("gpt2"), supported)
    assert isinstance(peft.get_peft_model(plain("gpt2"), lora()), supported)
    assert not isinstance(object(), supported)


def test_a_subclass_says_which_models_it_takes() -> None:
    class Narrow(AutoModelForCausalLMWithValueHead):
        supported_pretrained_model_architectures = (type("Other", (PreTrainedModel,), {}),)

    with pytest.raises(ValueError, match="must be a folder, a hub name"):
        Narrow.from_pretrained(plain("gpt2"))
