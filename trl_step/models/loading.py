"""Loads a transformers model: dtype, quantization, and a loading report without value heads."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
)
from transformers.utils import CONFIG_NAME

from trl_step.import_utils import is_npu_available, is_xpu_available
from trl_step.models.checkpoints import dtype_of_checkpoint, hub_arguments, require_source
from trl_step.models.notices import warn_user
from trl_step.private_names import model_classes, not_reported

LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
VALUE_HEAD_NAMES = r"^v_head\."


def current_device() -> int | str:
    """The device of this process: "cpu", the index of a CUDA device, or a name such as "xpu:0".

    The rank is read from the environment: asking accelerate for it would fix its backend before the user's own
    settings take effect.
    """
    rank = next((int(os.environ[name]) for name in LOCAL_RANK_VARIABLES if name in os.environ), 0)
    if is_xpu_available():
        return f"xpu:{rank}"
    if is_npu_available():
        return f"npu:{rank}"
    return rank if torch.cuda.is_available() else "cpu"


def load_pretrained(parent_class: Any, source: str, model_args: Sequence[Any], kwargs: Mapping[str, Any]) -> nn.Module:
    """`parent_class.from_pretrained(source, ...)` with the defaults of this library.

    Args:
        parent_class: AutoModelForCausalLM or another auto class. A model that only the classes for images, sound and
            text know, such as Qwen2-VL, is loaded by one of those.
        source: folder or hub repository of a whole model.
        model_args: passed on.
        kwargs: passed on, after `translate_quantization`. Without `dtype` or `torch_dtype` the weights are float32,
            whatever the file has, unless they are quantized: an optimizer loses small updates in 16 bits.

    Raises:
        FileNotFoundError: there is no such folder, and the hub does not give a model of this name; or no model is in
            the folder.
        NotADirectoryError: `source` is a file.
        ValueError: a decoder where an encoder-decoder model is expected, or the other way round.
    """
    require_source(source)
    _require_config(source, kwargs)
    kwargs = translate_quantization(kwargs)
    if "quantization_config" in kwargs:
        _require_bitsandbytes(kwargs["quantization_config"])
        if "device_map" not in kwargs:
            kwargs["device_map"] = {"": current_device()}
            warn_user(
                f"no device_map was given: the whole quantized model is placed on device {kwargs['device_map']['']}"
            )
    try:
        config = _load_config(source, kwargs)
    except OSError as error:
        if os.path.exists(source):
            raise
        raise FileNotFoundError(
            f"there is no folder {source} in {os.getcwd()}, and the hub does not give a model of this name: {error}"
        ) from error
    parent_class = _class_for(parent_class, config)
    _require_kind(parent_class, config, source)
    kwargs = choose_dtype(source, kwargs, config)
    with _quiet_about_value_heads(parent_class, config):
        return parent_class.from_pretrained(source, *model_args, **kwargs)


def _require_config(source: str, kwargs: Mapping[str, Any]) -> None:
    """Raise a `FileNotFoundError` if `source` is a folder without a model, and say which folders in it have one."""
    folder = Path(source, kwargs.get("subfolder") or "")
    if not os.path.isdir(source) or {"config", "gguf_file"} & set(kwargs) or (folder / CONFIG_NAME).exists():
        return
    inside = sorted(str(found.parent) for found in folder.glob(f"*/{CONFIG_NAME}"))
    hint = f"; there is a model in {', '.join(inside[:3])}" if inside else ""
    raise FileNotFoundError(f"{folder} holds no {CONFIG_NAME}, so there is no model in it{hint}")


def _load_config(source: str, kwargs: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig):
        return config
    code = {"trust_remote_code": kwargs["trust_remote_code"]} if "trust_remote_code" in kwargs else {}
    return AutoConfig.from_pretrained(source if config is None else config, **hub_arguments(kwargs), **code)


def _class_for(parent_class: Any, config: Any) -> Any:
    """`parent_class`, or the auto class of multimodal models if only that one knows the configuration.

    If none does, the class that the configuration names: AutoModelForCausalLM takes the text decoder out of Mllama, but
    does not know its configuration.
    """
    if model_classes(parent_class, config) or parent_class.__name__ in (getattr(config, "auto_map", None) or {}):
        return parent_class
    for_decoders = parent_class is AutoModelForCausalLM
    if parent_class not in (AutoModelForCausalLM, AutoModelForSeq2SeqLM) or for_decoders == config.is_encoder_decoder:
        return parent_class
    multimodal = (AutoModelForImageTextToText, AutoModelForMultimodalLM)
    return next((known for known in multimodal if model_classes(known, config)), _named(config) or parent_class)


def _require_kind(parent_class: Any, config: Any, source: str) -> None:
    """Raise a `ValueError` if only the other one of the two auto classes knows the configuration."""
    kinds = {AutoModelForCausalLM: "a decoder-only", AutoModelForSeq2SeqLM: "an encoder-decoder"}
    if parent_class not in kinds or model_classes(parent_class, config):
        return
    for other in kinds.keys() - {parent_class}:
        if model_classes(other, config) and parent_class.__name__ not in (getattr(config, "auto_map", None) or {}):
            name = other.__name__
            raise ValueError(
                f"{source} is {kinds[other]} model ({config.model_type}): load it with {name}WithValueHead, or with "
                f"{name} where there is no value head"
            )


def _named(config: Any) -> Any:
    """The class of transformers that the configuration names, or None if it is not made for this configuration."""
    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if found is not None and getattr(found, "config_class", None) is type(config):
            return found
    return None


# --- dtype ---------------------------------------------------------------------------------------------------


def choose_dtype(source: str, kwargs: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """`kwargs` with the single argument `dtype`: the caller's, else float32 with a warning if the file differs.

    Raises:
        ValueError: `dtype` and `torch_dtype` contradict each other.
    """
    chosen = dict(kwargs)
    old_name = chosen.pop("torch_dtype", None)
    dtype = chosen.pop("dtype", None)
    if dtype is not None and old_name is not None and dtype != old_name:
        raise ValueError(f"dtype={dtype} and torch_dtype={old_name} are two names of one setting: give one of them")
    dtype = old_name if dtype is None else dtype
    if dtype is not None:
        return {**chosen, "dtype": dtype}
    if "quantization_config" in chosen or getattr(config, "quantization_config", None) is not None:
        return chosen
    found = dtype_of_checkpoint(source, hub_arguments(kwargs)) or _dtype_of_config(config)
    if found not in (None, torch.float32):
        warn_user(
            f"the checkpoint {source} has {_name(found)}, the model is loaded as float32, so that small updates are "
            f"not rounded away. Pass dtype=torch.{_name(found)} to keep the file's dtype."
        )
    return {**chosen, "dtype": torch.float32}


def _dtype_of_config(config: Any) -> torch.dtype | None:
    dtype = getattr(config.get_text_config(decoder=True), "dtype", None)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def warn_of_low_precision(model: nn.Module) -> None:
    """Warn about a model object whose trainable weights have 16 bits."""
    low = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.float16, torch.bfloat16}
    if low:
        warn_user(
            f"the model's weights are {_name(low.pop())} and stay so in training: small updates are rounded away. "
            "transformers 5 loads the dtype of the file; load with dtype=torch.float32, or pass the path instead of "
            "the model."
        )


# --- quantization --------------------------------------------------------------------------------------------


def translate_quantization(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`kwargs` with `load_in_8bit`, `load_in_4bit` and related arguments replaced by a `quantization_config`.

    Raises:
        ValueError: both flags are set, or one of them together with a `quantization_config`.
    """
    from transformers import BitsAndBytesConfig

    translated = dict(kwargs)
    flags = {name: bool(translated.pop(name, False)) for name in ("load_in_8bit", "load_in_4bit")}
    if not any(flags.values()):
        return translated
    if translated.get("quantization_config") is not None:
        raise ValueError("load_in_8bit/load_in_4bit and quantization_config are two names of one setting: give one")
    if all(flags.values()):
        raise ValueError("load_in_8bit=True and load_in_4bit=True exclude each other")
    options = set(inspect.signature(BitsAndBytesConfig).parameters) - {"kwargs"}
    details = {name: translated.pop(name) for name in options & set(translated)}
    translated["quantization_config"] = BitsAndBytesConfig(**flags, **details)
    return translated


def _require_bitsandbytes(quantization_config: Any) -> None:
    from transformers import BitsAndBytesConfig

    if isinstance(quantization_config, BitsAndBytesConfig) and find_spec("bitsandbytes") is None:
        raise ImportError("loading in 8 or 4 bits needs the package bitsandbytes: pip install bitsandbytes")


def is_quantized(model: nn.Module) -> bool:
    """Whether the weights were loaded in 8 or 4 bits."""
    return bool(getattr(model, "is_loaded_in_8bit", False) or getattr(model, "is_loaded_in_4bit", False))


def keep_differentiable(model: nn.Module) -> None:
    """Let weights in 4 bits be trained through after a pass in eval mode.

    On CPUs with bfloat16 in AVX-512 such a pass makes bitsandbytes repack them for inference, for good: from then on no
    gradient goes through a layer, without an error.
    """
    module: Any
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


# --- the loading report --------------------------------------------------------------------------------------


@contextmanager
def _quiet_about_value_heads(parent_class: Any, config: Any) -> Iterator[None]:
    """Leave value heads out of transformers' report of unexpected tensors: they are read separately."""
    with ExitStack() as stack:
        for model_class in model_classes(parent_class, config):
            stack.enter_context(not_reported(model_class, VALUE_HEAD_NAMES))
        yield
