"""The modes of a model's modules: changed for a while and given back, or dropout switched off for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from trl_step.private_names import checkpoint_function, set_checkpoint_function
from trl_step.replacing import replaced

_TRAINING: WeakSet[torch.nn.Module] = WeakSet()
"""Models inside `training_without_dropout`, whose modes are right as they are."""


@contextmanager
def kept_modes(model: torch.nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode that it is in now, also after an error."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off; every module's former mode is restored, also after an error."""
    if model in _TRAINING:
        yield
        return
    with kept_modes(model):
        model.eval()
        yield


@contextmanager
def training_without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Forward passes for training: gradient checkpointing works, dropout stays off.

    A layer recomputes its activations only in train mode, and in train mode it drops out. So each checkpointed layer
    is in train mode while it decides, and in eval mode while it computes. The ratio of policy and old policy stays
    exactly that of the weights.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer) and getattr(layer, "gradient_checkpointing", False)
    ]
    with eval_mode(model):
        checkpoints = [checkpoint_function(layer) for layer in layers]
        for layer, checkpoint in zip(layers, checkpoints, strict=True):
            layer.training = True
            set_checkpoint_function(layer, partial(_checkpoint_in_eval_mode, layer, checkpoint))
        _TRAINING.add(model)
        try:
            yield
        finally:
            _TRAINING.discard(model)
            for layer, checkpoint in zip(layers, checkpoints, strict=True):
                set_checkpoint_function(layer, checkpoint)


def _checkpoint_in_eval_mode(
    layer: torch.nn.Module, checkpoint: Callable[..., Any], forward: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    def forward_in_eval_mode(*inner: Any, **inner_kwargs: Any) -> Any:
        layer.training = False
        try:
            return forward(*inner, **inner_kwargs)
        finally:
            layer.training = True

    return checkpoint(forward_in_eval_mode, *args, **kwargs)


def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> AbstractContextManager[None]:
    """Inside, `module` runs `forward`; its hooks go on as before."""
    return replaced(module, "forward", forward)


def disable_dropout_in_model(model: torch.nn.Module) -> None:
    """Set the rate of every dropout module to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
