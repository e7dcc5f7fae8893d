"""What a loss function returns for each token, and the mean over the tokens that count."""

from __future__ import annotations

from typing import NamedTuple

import torch


class TokenLosses(NamedTuple):
    """`losses` and `clipped` (1.0 where a clip decided), both in the shape of the input."""

    losses: torch.Tensor
    clipped: torch.Tensor


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean where `mask` is 1, and 0 for a mini-batch without a counted token; what is masked may be NaN."""
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)
