"""How a model is set up for the passes of a step, and given back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.modeling_layers import GradientCheckpointingLayer

from trl_step.models.shortcuts.modes import eval_mode


@contextmanager
def one_attention_kernel(model: torch.nn.Module) -> Iterator[None]:
    """Attention rounds alike in passes with and without a gradient.

    On a CPU, a trained bias in the attention mask (T5's relative positions) has a gradient in one kernel only; without
    a gradient torch would choose another one, and the first ratio would be 1 to six digits only.
    """
    trained_bias = any(
        name.endswith("relative_attention_bias.weight") and parameter.requires_grad and parameter.device.type == "cpu"
        for name, parameter in model.named_parameters()
    )
    with sdpa_kernel(SDPBackend.MATH) if trained_bias else nullcontext():
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
    with eval_mode(model), one_attention_kernel(model):
        checkpoints = [layer._gradient_checkpointing_func for layer in layers]
        for layer, checkpoint in zip(layers, checkpoints, strict=True):
            layer.training = True
            layer._gradient_checkpointing_func = partial(_checkpoint_in_eval_mode, layer, checkpoint)
        try:
            yield
        finally:
            for layer, checkpoint in zip(layers, checkpoints, strict=True):
                layer._gradient_checkpointing_func = checkpoint


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
