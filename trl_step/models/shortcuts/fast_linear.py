"""A model's dense layers through `trl_step.products`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from trl_step.models.inner_model import plain_model
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import replaced_forward
from trl_step.products import linear, onednn_is_faster


@contextmanager
def fast_dense_layers(model: nn.Module) -> Iterator[None]:
    """Inside, the model's dense layers multiply with the faster library, where this processor has one.

    Layers whose forward somebody replaced keep theirs. So does a whole model that is sharded, which lets go of its
    weights between the passes, or that checkpoints, as its layers run again behind this context and both runs must be
    the same.

    Args:
        model: a transformers model, or a PeftModel around one
    """
    with ExitStack() as stack:
        if _can_be_faster(model):
            for module in model.modules():
                if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
                    # a method, as torch.compile would take each new partial for other code and compile again
                    stack.enter_context(replaced_forward(module, MethodType(_forward, module)))
        yield


def _can_be_faster(model: nn.Module) -> bool:
    if not onednn_is_faster() or plain_model(model).device.type != "cpu":
        return False
    checkpoints = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return not checkpoints and not is_sharded(model)


def _forward(module: Any, input: torch.Tensor) -> torch.Tensor:
    transposed = isinstance(module, Conv1D)
    # the compiler chooses for itself; what somebody else keeps or recomputes must be what a dense layer always keeps
    if torch.compiler.is_compiling() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
        return F.linear(input, module.weight.t() if transposed else module.weight, module.bias)
    return linear(input, module.weight, module.bias, transposed)
