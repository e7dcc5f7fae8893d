"""The state dict of a wrapper: names as in a plain transformers checkpoint, and strict loading."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from trl_step.models.adapters import frozen_base_names

WRAPPED = "pretrained_model."
VALUE_HEAD_FILE = "model.safetensors"
"""Release 0.7 also looks in this file for the value head of an adapter."""


def connect_state_dict(wrapper: nn.Module) -> None:
    """Let `wrapper` write and read names without `pretrained_model.`, also inside DistributedDataParallel."""
    wrapper.register_state_dict_post_hook(_write_plain_names)
    wrapper.register_load_state_dict_pre_hook(_read_plain_names)
    wrapper.register_load_state_dict_post_hook(_report_plain_names)


def _write_plain_names(wrapper: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    hidden = _not_written(wrapper)
    start = prefix + WRAPPED
    entries = [(name, state.pop(name)) for name in list(state) if name.startswith(prefix)]
    for name, tensor in entries:
        if not name.startswith(start):
            state[name] = tensor
        elif name.removeprefix(start) not in hidden:
            state[prefix + name.removeprefix(start)] = tensor


def _read_plain_names(wrapper: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = tuple(f"{prefix}{name}." for name, _ in wrapper.named_children())
    for name in [name for name in state if name.startswith(prefix) and not name.startswith(own)]:
        state[prefix + WRAPPED + name.removeprefix(prefix)] = state.pop(name)


def _report_plain_names(wrapper: Any, incompatible: Any) -> None:
    """Plain names in the report, without the base weights that are never written."""
    hidden = _not_written(wrapper)
    for keys in (incompatible.missing_keys, incompatible.unexpected_keys):
        keys[:] = [name.replace(WRAPPED, "", 1) for name in keys if name.partition(WRAPPED)[2] not in hidden]


def _not_written(wrapper: Any) -> set[str]:
    return frozen_base_names(wrapper.pretrained_model) if wrapper.is_peft_model else set()


def split_state(
    state: Mapping[str, torch.Tensor], modules: Sequence[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of `modules`, and all the others."""
    parts = tuple(f"{module}." for module in modules)
    own = {name: tensor for name, tensor in state.items() if name.startswith(parts)}
    return own, {name: tensor for name, tensor in state.items() if name not in own}


def write_value_head(folder: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write `tensors` to `folder`, where `checkpoints.read_value_head` finds them next to an adapter."""
    on_cpu = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, os.path.join(folder, VALUE_HEAD_FILE), metadata={"format": "pt"})
