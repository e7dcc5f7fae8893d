"""What is changed about a model's modules for a while, and given back; dropout switched off for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off; every module's former mode is restored, also after an error."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def replaced_forward(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside, `module` runs `forward`; its hooks go on as before."""
    own = module.__dict__.get("forward")  # where somebody replaced it already
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def disable_dropout_in_model(model: torch.nn.Module) -> None:
    """Set the rate of every dropout module to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0
