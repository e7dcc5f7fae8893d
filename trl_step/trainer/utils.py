"""Legacy import path. The controllers and the running moments live in `trl_step.ppo`."""

from __future__ import annotations

from typing import Any

import torch

from trl_step.core import keep
from trl_step.ppo.kl import AdaptiveKLController, FixedKLController
from trl_step.ppo.rewards import RunningMoments

__all__ = [
    "AdaptiveKLController",
    "FixedKLController",
    "RunningMoments",
    "disable_dropout_in_model",
    "exact_div",
    "get_global_statistics",
]


def exact_div(a: int, b: int, a_str: str, b_str: str, custom_error_message: str = "") -> int:
    """a / b where that is a whole number.

    Raises:
        ValueError: there is a remainder; `a_str` and `b_str` name the two in the message.
    """
    quotient, remainder = divmod(a, b)
    if remainder:
        raise ValueError(f"{custom_error_message}: {a_str}={a} is not a multiple of {b_str}={b}".lstrip(": "))
    return quotient


def disable_dropout_in_model(model: torch.nn.Module) -> None:
    """Set the rate of every dropout module to 0."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0


@torch.no_grad()
def get_global_statistics(
    accelerator: Any, xs: torch.Tensor, mask: torch.Tensor | None = None, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, biased variance and count of `xs` over all processes, where `mask` is 1: three 0-d tensors."""
    reduce_sum = accelerator.reduce if getattr(accelerator, "use_distributed", False) else keep
    xs = xs.to(accelerator.device)
    weights = torch.ones_like(xs) if mask is None else mask.to(xs)
    total, count = reduce_sum(torch.stack(((xs * weights).sum(), weights.sum())))
    mean = total / count
    variance = reduce_sum((((xs - mean) ** 2) * weights).sum()) / count
    return mean.to(device), variance.to(device), count.to(device)
