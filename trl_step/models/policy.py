"""Builds the model inside the wrapper from the arguments of `from_pretrained`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from trl_step.models import adapters
from trl_step.models.checkpoints import HUB_ARGUMENTS, hub_arguments, read_value_head, require_source
from trl_step.models.inner_model import has_adapter, is_peft_model
from trl_step.models.loading import is_quantized, load_pretrained, warn_of_low_precision
from trl_step.models.notices import warn_user

FOR_OBJECTS = (*HUB_ARGUMENTS, "dtype", "torch_dtype", "trust_remote_code")
"""Arguments that are in order beside a model object, whether they do anything or not."""


SAID_WITHOUT_HEAD: set[str] = set()
"""Folders and repositories of which a warning has said that they hold no value head."""


class PolicyRequest(NamedTuple):
    """Arguments of `from_pretrained`, sorted."""

    source: Any
    """folder, hub name, transformers model or PeftModel"""
    parent_class: Any
    """the auto class that loads the model"""
    architectures: tuple[type, ...]
    """classes that a model object may have"""
    peft_config: Any
    is_trainable: bool
    model_args: tuple[Any, ...]
    model_kwargs: dict[str, Any]
    kbit_kwargs: dict[str, Any]

    @property
    def is_path(self) -> bool:
        """Whether `source` names a folder or a repository."""
        return isinstance(self.source, (str, os.PathLike))


def load_policy(request: PolicyRequest) -> Any:
    """The transformers model or PeftModel that `request` describes.

    Raises:
        ValueError: an argument has the wrong type; prompt learning; a folder with half an adapter; an adapter that
            would take the place of another.
        ImportError: a package that an argument needs is missing.
    """
    return _from_path(request) if request.is_path else _from_object(request)


def _from_path(request: PolicyRequest) -> Any:
    require_source(request.source)
    source, hub = os.fspath(request.source), hub_arguments(request.model_kwargs)
    folder = adapters.adapter_folder(source, hub)
    if folder is None:
        model = load_pretrained(request.parent_class, source, request.model_args, request.model_kwargs)
        return _with_new_adapter(model, request)
    if request.peft_config is not None:
        warn_user(f"peft_config is ignored: {source} has a trained adapter, which is loaded")
    # the location of the adapter says nothing about that of its base model
    of_base = {name: value for name, value in request.model_kwargs.items() if name not in ("revision", "subfolder")}
    name = adapters.base_of_adapter(folder)
    if adapters.adapter_folder(name, hub_arguments(of_base)) is not None:
        raise ValueError(
            f"the base model of {source} is {name}, which is an adapter itself: load the two with "
            "peft.PeftModel.from_pretrained, one after the other, each followed by merge_and_unload(), and save the "
            "result as a model"
        )
    base = load_pretrained(request.parent_class, name, request.model_args, of_base)
    return adapters.load_adapter(base, folder, request.is_trainable)


def _from_object(request: PolicyRequest) -> Any:
    model = request.source
    is_peft = is_peft_model(model)
    if not is_peft and not isinstance(model, request.architectures):
        raise ValueError(
            "pretrained_model_name_or_path must be a folder, a hub name, a transformers model or a PeftModel, not "
            f"{type(model).__name__}"
        )
    without_effect = sorted(name for name, value in request.model_kwargs.items() if value and name not in FOR_OBJECTS)
    if without_effect:
        warn_user(f"these arguments are ignored, as the model is loaded already: {', '.join(without_effect)}")
    dtype = request.model_kwargs.get("dtype", request.model_kwargs.get("torch_dtype"))
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    if dtype is not None:
        model = model.to(dtype)
    elif request.peft_config is None:
        warn_of_low_precision(model)
    if not is_peft:
        return _with_new_adapter(model, request)
    if request.peft_config is not None:
        warn_user("peft_config is ignored: the model is a PeftModel, whose adapter is trained")
    return model


def _with_new_adapter(model: Any, request: PolicyRequest) -> Any:
    if request.peft_config is None:
        return model
    return adapters.new_adapter(model, request.peft_config, is_quantized(model), request.kbit_kwargs)


def keep_reference(model: Any) -> tuple[str | None, str | None]:
    """Freeze a copy of the adapter that training starts from, if it changes the base model of the PeftModel `model`.

    A new adapter may do so, too: PiSSA takes a part out of the base weights and puts it into the adapter.

    Returns:
        Its name, or None if training starts from the base model; and the reason if a copy should exist but does not.
    """
    if adapters.is_fresh(model):
        return None, None
    try:
        return adapters.freeze_reference(model), None
    except ValueError as error:
        problem = f"PEFT cannot hold the trained adapter twice, so no frozen copy of it is the reference: {error}"
        warn_user(f"{problem}. Pass a ref_model to the trainer.")
        return None, problem


def own_tensors(request: PolicyRequest, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Tensors of the modules that a wrapper adds, from the checkpoint or from the model object.

    Args:
        request: the arguments of `from_pretrained`.
        modules: such as ("v_head",).
    """
    if not request.is_path:
        return _carried(request.source.state_dict(), modules) or _beside(request.source, modules)
    source = os.fspath(request.source)
    tensors = read_value_head(source, hub_arguments(request.model_kwargs), modules)
    if not tensors and source not in SAID_WITHOUT_HEAD:  # the reference often comes from the same place
        SAID_WITHOUT_HEAD.add(source)
        warn_user(f"{source} holds no value head: it starts from random weights, as it should in a first run")
    return tensors


def _beside(model: Any, modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """From the folder that a whole model was loaded from; of one with an adapter that is only its base."""
    # differs from v0.7: a model object got a new value head, although the folder that it came from has one
    folder = getattr(model, "name_or_path", "")
    if has_adapter(model) or not os.path.isdir(folder):
        return {}
    return read_value_head(folder, {}, modules)


def _carried(state: Mapping[str, torch.Tensor], modules: tuple[str, ...]) -> dict[str, torch.Tensor]:
    parts = tuple(f"{module}." for module in modules)
    return {name: tensor for name, tensor in state.items() if any(part in name for part in parts)}
