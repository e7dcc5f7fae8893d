"""Models whose weights are sharded over processes: FSDP2 and DeepSpeed ZeRO-3.

Passes that need no gradient run on gathered weights: they are exchanged once, and then each process runs as many passes
as it needs. Training passes stay sharded, so every process runs the same number of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from trl_step.private_names import remove_zero3_hooks

_GATHERED: WeakSet[nn.Module] = WeakSet()
"""Models that are currently gathered."""
ZERO3_ENGINES: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""The DeepSpeed engine of each model that ZeRO-3 has partitioned; set by the trainer."""


def is_sharded(model: nn.Module) -> bool:
    """Whether every process holds only a part of the weights."""
    return bool(_fsdp_units(model)) or bool(_zero3_parameters(model))


def _fsdp_units(model: nn.Module) -> list[Any]:
    """The modules that FSDP2 gathers separately, the root first."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def _zero3_parameters(model: nn.Module) -> list[nn.Parameter]:
    # DeepSpeed marks the parameters that it has partitioned; their class stays nn.Parameter
    return [parameter for parameter in model.parameters() if hasattr(parameter, "ds_id")]


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, each process has all weights of `model`, and its forward passes exchange nothing; no gradients.

    All processes enter together. Does nothing for a model that is not sharded, or already gathered.
    """
    if model in _GATHERED or not is_sharded(model):
        yield
        return
    _GATHERED.add(model)
    try:
        with _whole_fsdp(model) if _fsdp_units(model) else _whole_zero3(model):
            yield
    finally:
        _GATHERED.discard(model)


@contextmanager
def _whole_fsdp(model: nn.Module) -> Iterator[None]:
    root, *units = _fsdp_units(model)
    for unit in units:  # the root keeps its weights after a forward pass in any case
        unit.set_reshard_after_forward(False, recurse=False)
    for unit in (root, *units):
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
        for unit in (root, *units):
            unit.reshard()


@contextmanager
def _whole_zero3(model: nn.Module) -> Iterator[None]:
    """Removes the hooks that would release each layer's weights after its pass, and gather them again."""
    import deepspeed

    offload = ZERO3_ENGINES[model].optimizer.parameter_offload
    with deepspeed.zero.GatheredParameters(_zero3_parameters(model)):
        remove_zero3_hooks(offload)
        try:
            yield
        finally:
            offload.setup_zero_stage3_hooks()


def release(model: nn.Module) -> None:
    """Release the weights that a forward pass gathered for a backward pass that never came."""
    for unit in _fsdp_units(model):
        unit.reshard()


@contextmanager
def embeddings_in_the_root(*models: Any) -> Iterator[None]:
    """Inside, accelerate sees no embeddings of these value-head models, and leaves them to the root of FSDP2.

    Otherwise it shards input and output embeddings as units, and fails if more modules share the weight, as in T5.
    """
    hidden = ("get_input_embeddings", "get_output_embeddings")
    for model in models:
        for name in hidden:
            setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for model in models:
            for name in hidden:
                delattr(model, name)


@torch.no_grad()
def start_fsdp(model: nn.Module, is_encoder_decoder: bool, device: torch.device) -> None:
    """One pass through the root of a freshly sharded model: FSDP2 takes the module that runs first as the root, and
    refuses a layer, which would be the first one in `generate`."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    model(**inputs)
    release(model)


def whole_state_dict(model: nn.Module, keep: bool) -> dict[str, torch.Tensor]:
    """The state dict of `model` with whole tensors on the CPU; every process calls it.

    Args:
        keep: whether this process needs it; the others get an empty dictionary
    """
    with gathered(model) if _zero3_parameters(model) else ExitStack():
        whole = {}
        for name, tensor in model.state_dict().items():
            full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if keep:
                whole[name] = full.detach().to("cpu", copy=True)
    return whole
