"""Matrix products whose factors have few bits and whose sums are float32.

A product in bfloat16 is rounded to bfloat16. If it is a part of a longer sum, as the gradient of the head's weight over
chunks of rows, every part is rounded before it is added, and small parts lose the most. CUDA devices can hand out, and
add to, the float32 numbers that they sum up in.
"""

from __future__ import annotations

import torch
from packaging.version import Version

HALVES = (torch.bfloat16, torch.float16)
DEVICES = ["cuda"]
"""Types of devices whose products may have another dtype than their factors."""
_HAS_OUT_DTYPE = Version(torch.__version__) >= Version("2.8")


def sums_in_float32(factor: torch.Tensor) -> bool:
    """Whether products of tensors like this one can be float32."""
    return _HAS_OUT_DTYPE and factor.dtype in HALVES and factor.device.type in DEVICES


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [n, k] @ right [k, m], of one dtype -> [n, m] in float32 if it can be, else in their dtype."""
    return torch.mm(left, right, out_dtype=torch.float32) if sums_in_float32(left) else torch.mm(left, right)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, first: bool) -> None:
    """total [n, m] += left [n, k] @ right [k, m]; over what was there if it is the `first`.

    `right` has the dtype of `total`, float32 at least, and is rounded to that of `left`.
    """
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if first else 1)
    elif left.dtype != torch.float16 and sums_in_float32(left) and not first:
        torch.addmm(total, left, right.to(left.dtype), out_dtype=torch.float32, out=total)
    else:
        addend = _half_product(left, right) if left.dtype == torch.float16 else product(left, right.to(left.dtype))
        if first:
            total.copy_(addend)
        else:
            total.add_(addend)


def _half_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [V, n] of float16 numbers in 0..1 times `right` [n, D] in float32 -> [V, D] float32.

    Slopes divided by the size of the vocabulary lie below the smallest float16. A power of two, which loses nothing,
    brings the largest of `right` to a size at which n of them can be summed up.
    """
    highest = right.abs().amax().clamp(min=torch.finfo(right.dtype).tiny)
    exponent = torch.floor(torch.log2(2.0**15 / len(right) / highest)).clamp(max=100)
    return product(left, (right * torch.exp2(exponent)).to(left.dtype)).to(right.dtype) * torch.exp2(-exponent)
