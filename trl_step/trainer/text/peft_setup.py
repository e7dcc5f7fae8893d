"""Adapters and quantization, from a `ModelConfig` and for the trainers."""

from __future__ import annotations

import copy
from typing import Any

import torch

from trl_step.import_utils import is_xpu_available, require_peft
from trl_step.models.adapters import new_adapter
from trl_step.models.inner_model import is_peft_model
from trl_step.models.loading import is_quantized, keep_differentiable
from trl_step.models.notices import warn_user
from trl_step.trainer.model_config import ModelConfig


def get_peft_config(model_config: ModelConfig) -> Any:
    """A `peft.LoraConfig` of the settings, or None if `use_peft` is False.

    Raises:
        ImportError: peft is requested and not installed.
    """
    if not model_config.use_peft:
        return None
    require_peft("use_peft=True")
    from peft import LoraConfig

    return LoraConfig(
        task_type=model_config.lora_task_type,
        r=model_config.lora_r,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        target_modules=model_config.lora_target_modules,
        target_parameters=model_config.lora_target_parameters,
        modules_to_save=model_config.lora_modules_to_save,
        use_rslora=model_config.use_rslora,
        use_dora=model_config.use_dora,
        bias="none",
    )


def get_quantization_config(model_config: ModelConfig) -> Any:
    """A `transformers.BitsAndBytesConfig` of the settings, or None if no quantization is requested."""
    from transformers import BitsAndBytesConfig

    if model_config.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    if not model_config.load_in_4bit:
        return None
    compute_dtype = None if model_config.dtype == "auto" else model_config.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_compute_dtype=compute_dtype,
        bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
        bnb_4bit_quant_storage=model_config.bnb_4bit_quant_storage,
    )


def get_kbit_device_map() -> dict[str, int | str] | None:
    """The whole model on the accelerator of this process, as a `device_map`; None if there is no accelerator."""
    from accelerate import PartialState

    if is_xpu_available():
        return {"": f"xpu:{PartialState().local_process_index}"}
    if torch.cuda.is_available():
        return {"": PartialState().local_process_index}
    return None


def prepare_for_training(model: Any, peft_config: Any, args: Any) -> tuple[Any, bool]:
    """Add an adapter to a model that has none, and let gradients reach it through checkpointing.

    Args:
        model: a transformers model or a PeftModel, which keeps its adapter; None stays None.
        peft_config: `peft.PeftConfig`, or None for no new adapter.
        args: `transformers.TrainingArguments`.

    Returns:
        The model, and whether its adapter was cast to bfloat16: then forward passes outside the trainer's own need
        autocast.

    Raises:
        ImportError: there is a `peft_config`, but peft is not installed.
        ValueError: `peft_config` is something else.
    """
    if model is None:
        return None, False
    keep_differentiable(model)
    quantized = is_quantized(model)
    adds_adapter = peft_config is not None and not is_peft_model(model)
    if args.gradient_checkpointing and not (quantized and adds_adapter):
        model.enable_input_require_grads()
    if not adds_adapter:
        return model, False
    checkpointing = {
        "use_gradient_checkpointing": args.gradient_checkpointing,
        "gradient_checkpointing_kwargs": args.gradient_checkpointing_kwargs or {},
    }
    model = new_adapter(model, peft_config, quantized, checkpointing)
    cast = quantized and args.bf16
    if cast:
        peft_module_casting_to_bf16(model)
    return model, cast


def for_scores(peft_config: Any) -> Any:
    """`peft_config` for a classifier: with another task PEFT freezes the score head and does not save it.

    A copy with the task_type "SEQ_CLS", and a warning, if it has none or that of a language model.
    """
    task = getattr(peft_config, "task_type", "SEQ_CLS")
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        return peft_config
    warn_user(f"the adapter has task_type={task}: a reward model needs 'SEQ_CLS', so that its score head is trained")
    peft_config = copy.copy(peft_config)
    peft_config.task_type = "SEQ_CLS"
    return peft_config


def warn_of_a_frozen_head(model: Any) -> None:
    """Warn of a PeftModel whose score head is neither trained nor saved with the adapter."""
    if not is_peft_model(model):
        return
    base = model.get_base_model()
    head = next((getattr(base, name) for name in ("score", "classifier") if hasattr(base, name)), None)
    if head is not None and not any(parameter.requires_grad for parameter in head.parameters()):
        warn_user(
            "the score head of the PeftModel is not trained and not saved with the adapter: unless it is that of a "
            "trained reward model, build the adapter with task_type='SEQ_CLS'"
        )


def peft_module_casting_to_bf16(model: torch.nn.Module) -> None:
    """Cast adapter layers and float32 embeddings to bfloat16, and norms to float32 for precision.

    Args:
        model: PeftModel; changed in place.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    embeddings = ("lm_head", "embed_tokens", "wte", "wpe")
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            module.to(torch.bfloat16)
        elif isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(part in name for part in embeddings):
            weight = getattr(module, "weight", None)
            if weight is not None and weight.dtype == torch.float32:
                module.to(torch.bfloat16)
