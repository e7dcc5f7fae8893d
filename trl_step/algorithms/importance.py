"""Weights for samples that were not drawn from exactly the policy that is trained: w = exp(old - sampling log-prob).

They multiply the loss of a token and do not enter the ratio that is clipped. They are for a server that samples in
another precision, or with the weights of an earlier step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from trl_step.core import ReduceSum, keep

ImportanceCorrection = Literal["tis", "icepop", "sequence_mask", "geometric_mask"]

BOUNDS: dict[str, tuple[float, float]] = {
    "tis": (0.0, 2.0),
    "icepop": (0.5, 5.0),
    "sequence_mask": (0.0, 3.0),
    "geometric_mask": (0.99, 1.01),
}
"""Of each correction, if none are given: lowest and highest."""
LARGEST_EXPONENT = 80.0
"""exp of it is a finite float32"""
LARGEST_IN_ESS = 20.0
"""and of this also the square of a sum over a billion tokens; one such weight outweighs them all"""


def importance_weights(
    old_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    mask: torch.Tensor,
    correction: str,
    bounds: tuple[float, float] | None = None,
) -> torch.Tensor:
    """The factor on each token's policy loss, [B, T]; 0 where the mask is 0.

    Args:
        old_logprobs, sampling_logprobs, mask: [B, T]
        correction: with w = exp(old - sampling), of one token:
            `tis` w, at most `high` (and at least `low`) (Yao et al. 2025, truncated importance sampling);
            `icepop` w from `low` to `high`, else 0 (Ling team 2025);
            `sequence_mask` 1 for a sample whose product of w is from `low` to `high`, else 0;
            `geometric_mask` the same with the geometric mean of w.
        bounds: (low, high); None: those of `BOUNDS`

    Raises:
        ValueError: the correction is unknown.
    """
    if correction not in BOUNDS:
        raise ValueError(f"importance_correction={correction!r} is not known; choose one of {', '.join(BOUNDS)}")
    low, high = BOUNDS[correction] if bounds is None else bounds
    difference = torch.where(mask.bool(), old_logprobs - sampling_logprobs, 0.0)
    if correction in ("tis", "icepop"):
        weights = difference.clamp(max=LARGEST_EXPONENT).exp()
        if correction == "tis":
            return weights.clamp(low, high) * mask
        return torch.where((weights >= low) & (weights <= high), weights, 0.0) * mask
    total = difference.sum(dim=1, keepdim=True)
    if correction == "geometric_mask":
        total = total / mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratio = total.clamp(max=LARGEST_EXPONENT).exp()
    return ((ratio >= low) & (ratio <= high)).to(difference.dtype) * mask


def mismatch_statistics(
    old_logprobs: torch.Tensor,
    sampling_logprobs: torch.Tensor,
    mask: torch.Tensor,
    reduce_sum: ReduceSum = keep,
    largest_of_all: Callable[[float], float] = float,
) -> dict[str, torch.Tensor]:
    """How far the sampler was from the policy, over all counted tokens of all processes, each 0-d.

    Args:
        old_logprobs, sampling_logprobs, mask: [B, T]
        reduce_sum: adds over processes; it is called twice
        largest_of_all: the largest of each process's number
    """
    counted = mask.bool()
    old = torch.where(counted, old_logprobs, 0.0)
    sampled = torch.where(counted, sampling_logprobs, 0.0)
    exponent = torch.where(counted, old - sampled, -torch.inf)
    weights = exponent.clamp(max=LARGEST_IN_ESS).exp()
    above = ((sampled - old < -1e-3) & counted).to(old.dtype)
    sums = torch.stack(
        [x.sum() for x in (mask.to(old.dtype), sampled - old, weights, weights.square(), old, sampled, above)]
    )
    count, difference, total, squares, old_sum, sampled_sum, less = reduce_sum(sums)
    old_off = torch.where(counted, old - old_sum / count, 0.0)
    sampled_off = torch.where(counted, sampled - sampled_sum / count, 0.0)
    joint, own = reduce_sum(torch.stack(((old_off * sampled_off).sum(), old_off.square().sum())))
    return {
        "sampling/kl": difference / count,
        "sampling/ratio_max": torch.as_tensor(largest_of_all(float(exponent.max().clamp(max=LARGEST_EXPONENT).exp()))),
        "sampling/ess": total.square() / (count * squares).clamp(min=torch.finfo(squares.dtype).tiny),
        "sampling/slope": torch.where(own > 0, joint / own.clamp(min=torch.finfo(own.dtype).tiny), 1.0),
        "sampling/less_likely": less / count,
    }
