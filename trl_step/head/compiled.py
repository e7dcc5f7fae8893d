"""The numbers of one tile as one kernel, where torch can compile it.

Without it, each of some ten operations between the product with the head and what is kept of it reads and writes the
tile: 38 bytes for each logit, against 6 in one kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from trl_step.core import is_out_of_memory

logger = logging.getLogger(__name__)

DEVICES = ["cuda"]
"""Types of devices whose tiles are compiled. On a CPU the cache does the same, without half a minute of compiling."""


class Seen(NamedTuple):
    """Of a tile [n, v]; the first three [n, 1] in float32 at least."""

    peak: torch.Tensor
    """the highest logit"""
    sum: torch.Tensor
    """of exp(logit - peak)"""
    label_logits: torch.Tensor
    """the logit at `place`"""
    weights: torch.Tensor | None
    """exp(logit - peak) [n, v] in the dtype of the product, if they were asked for"""


def may_be_compiled(product: torch.Tensor) -> bool:
    """Whether `seen` would try; cheap, for those who have something to prepare for it."""
    # torch would compile a single row or column anew
    return product.device.type in DEVICES and min(product.shape) >= 2 and not torch.compiler.is_compiling()


def seen(product: torch.Tensor, place: torch.Tensor, factor: float, keep: bool) -> Seen | None:
    """What a softmax needs to know of a tile, in one kernel; None where that cannot be, now or ever.

    Args:
        product: [n, v], the logits over `factor`
        place: int64 [n, 1], a column of each row
        keep: return the weights
    """
    if not may_be_compiled(product):
        return None
    try:
        # a tensor, or each temperature would be compiled for itself; it is filled on the device, so nothing waits
        scale = torch.full((), factor, dtype=torch.promote_types(product.dtype, torch.float32), device=product.device)
        found = _kernel(keep)(product, place, scale)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.warning(
            "torch.compile failed, so on %s the softmax over the vocabulary runs in several kernels from now on: the "
            "same numbers, but slower. Often Triton or a C compiler is missing. The error was: %s",
            product.device.type,
            error,
        )
        DEVICES.remove(product.device.type)
        return None
    return Seen(*found)


@lru_cache(maxsize=2)
def _kernel(keep: bool) -> Callable[..., Any]:
    """Compiled for any number of rows and columns, and any factor."""

    def kernel(product: torch.Tensor, place: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits = product.to(factor.dtype) * factor
        # finite, so that a tile of tokens that are all excluded has weights of 0
        peak = logits.amax(dim=1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        weights = torch.exp(logits - peak)
        kept = weights.to(product.dtype) if keep else None
        return peak, weights.sum(dim=1, keepdim=True), logits.gather(1, place), kept

    return torch.compile(kernel, dynamic=True)
