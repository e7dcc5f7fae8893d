"""Losses of the value head, token by token."""

from __future__ import annotations

import torch

from trl_step.algorithms.losses.tokens import TokenLosses


def clipped_value_losses(
    vpreds: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, cliprange_value: float
) -> TokenLosses:
    """max((v - R)², (clip(v, v_old - c, v_old + c) - R)²) / 2; `vpreds` are v.

    Args:
        vpreds, old_values, returns: of one shape; `old_values` are v_old, `returns` R
        cliprange_value: c
    """
    near = torch.clamp(vpreds, old_values - cliprange_value, old_values + cliprange_value)
    free, clipped = (vpreds - returns) ** 2, (near - returns) ** 2
    return TokenLosses(0.5 * torch.maximum(free, clipped), (clipped > free).float())
