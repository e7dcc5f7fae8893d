"""What a loss function returns for each token, and the mean over the tokens that count."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from trl_step.core import ReduceSum, keep

LossNormalization = Literal["mini_batch", "tokens", "samples", "constant"]


class TokenLosses(NamedTuple):
    """`losses`, and `clipped` (1.0 where a clip decided; None: the loss has no clip), in the shape of the input."""

    losses: torch.Tensor
    clipped: torch.Tensor | None = None


def mean_over(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean where `mask` is 1, and 0 for a mini-batch without a counted token; what is masked may be NaN.

    Args:
        values, mask: [b, T] -> 0-d
    """
    return torch.where(mask.bool(), values, 0.0).sum() / mask.sum().clamp(min=1)


def token_weights(mask: torch.Tensor, normalization: str, constant_length: int | None = None) -> torch.Tensor:
    """The weight of each token in the mean loss of a mini-batch, [b, T]; 0 where the mask is 0.

    Args:
        mask: [b, T]
        normalization: with b samples, of which sample i has |y_i| counted tokens:
            `mini_batch`, `tokens`: 1 / number of all counted tokens (they differ in how mini-batches are joined);
            `samples`: 1 / (b |y_i|), the mean of each sample's mean (GRPO);
            `constant`: 1 / (b L) (Dr. GRPO)
        constant_length: L, in tokens
    """
    counted = mask.to(torch.float32)
    if normalization == "samples":
        return counted / (counted.sum(dim=1, keepdim=True).clamp(min=1) * len(mask))
    if normalization == "constant":
        assert constant_length is not None
        return counted / (len(mask) * constant_length)
    return counted / counted.sum().clamp(min=1)


def positive_factors(
    mask: torch.Tensor,
    positive: torch.Tensor,
    normalization: str,
    constant_length: int | None = None,
    reduce_sum: ReduceSum = keep,
) -> torch.Tensor:
    """Factors that turn the mean loss of a batch into the mean over its positive samples alone, [B, T]; 0 elsewhere.

    They are one number, the same in every mini-batch and on every process, so the term does not depend on how the batch
    is cut.

    Args:
        mask: [B, T]
        positive: bool [B]
        normalization, constant_length: of the mean, see `token_weights`
        reduce_sum: adds over processes
    """
    counted = mask.to(torch.float32)
    shares = counted / counted.sum(dim=1, keepdim=True).clamp(min=1) if normalization == "samples" else counted
    chosen = counted * positive.unsqueeze(1)
    whole = shares.sum()
    if normalization == "constant":
        assert constant_length is not None
        whole = torch.ones_like(whole) * len(mask) * constant_length
    share, whole = reduce_sum(torch.stack(((shares * chosen).sum(), whole)))
    return torch.where(share > 0, chosen * (whole / share.clamp(min=torch.finfo(share.dtype).tiny)), 0.0)


def weighted_sum(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Sum of `values` times `weights`, both [b, T]; where a weight is 0 the value may be NaN."""
    return (torch.where(weights != 0, values, 0.0) * weights).sum()
