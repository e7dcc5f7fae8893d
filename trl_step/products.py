"""Layer 1: float32 matrix products on a CPU, by whichever of torch's two libraries is faster there.

torch multiplies float32 matrices with MKL, which keeps to 256-bit instructions on processors that are not Intel's;
oneDNN, which torch brings along for other work, uses their 512-bit ones and is about twice as fast on an AMD Zen 5.
The choice follows from the processor alone, so that a resumed run computes what the first one would have.
`torch.backends.mkldnn.enabled = False` gives torch's own products back.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

_PLAIN = {torch.Tensor, torch.nn.Parameter}
"""Other classes may hold their numbers in another way, as quantized weights do."""
MIN_ROWS = 16
"""Fewer rows are bound by reading the weight, and either library does that at the same speed."""
MIN_MULTIPLICATIONS = 1 << 24
"""Below, little time is to be won, and the code that the library keeps for each size would outgrow a small model."""


@cache
def onednn_is_faster() -> bool:
    """Whether this processor has 512-bit instructions that MKL does not use."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older releases cannot tell
    return "AMD" in capabilities.get("cpu_name", "") and bool(capabilities.get("avx512_f"))


def takes_onednn(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether left [..., K] times right [K, M] or its transpose goes through oneDNN."""
    rows = left.numel() // max(left.shape[-1], 1)
    return bool(
        left.device.type == right.device.type == "cpu"
        and left.dtype == right.dtype == torch.float32
        and {type(left), type(right)} <= _PLAIN
        and rows >= MIN_ROWS
        and rows * right.numel() >= MIN_MULTIPLICATIONS
        and torch.backends.mkldnn.enabled
        and onednn_is_faster()
    )


def padded_rows(rows: int, device: torch.device) -> int:
    """The number of rows to give a product on `device` instead of `rows`: at most a sixteenth (or 8) more.

    oneDNN compiles code for every size that it meets and keeps it, some 0.3 MB each; the rows of mini-batches of
    ragged samples would meet hundreds.
    """
    if device.type != "cpu" or rows < MIN_ROWS or not (torch.backends.mkldnn.enabled and onednn_is_faster()):
        return rows
    step = max(8, (1 << rows.bit_length()) >> 5)
    return -(-rows // step) * step


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [N, K] @ right [K, M], without gradients. Fastest for a `left` whose rows are contiguous."""
    return _onednn(left, right.t()) if takes_onednn(left, right) else torch.mm(left, right)


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, transposed: bool = False
) -> torch.Tensor:
    """`torch.nn.functional.linear`, with gradients; a `transposed` weight is [in, out] instead of [out, in]."""
    matrix = weight.t() if transposed else weight
    if torch.is_autocast_enabled("cpu") or not takes_onednn(input, matrix):
        return F.linear(input, matrix, bias)
    rows = input.flatten(0, -2)
    if torch.is_grad_enabled():
        output = _Linear.apply(rows, weight, bias, transposed)
    else:
        output = _onednn(_padded(rows), matrix, bias)[: len(rows)]
    return output.view(*input.shape[:-1], matrix.shape[0])


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """[N, K] -> [N', K] with rows of 0 behind it, see `padded_rows`."""
    count, used = padded_rows(len(rows), rows.device), len(rows)
    if count == used:
        return rows
    padded = rows.new_empty((count, rows.shape[1]))
    padded[:used], padded[used:] = rows, 0.0
    return padded


def _onednn(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """left [..., K] @ right.T [K, M] + bias [M]; `left` is copied where its rows are not contiguous."""
    bias = None if bias is None else bias.contiguous()  # it reads M numbers one behind the other, whatever the stride
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")


def _transposed_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [N, A].T @ right [N, B], contiguous, by the way that copies less to bring an operand into rows."""
    (rows, a), b = left.shape, right.shape[1]
    if rows * a <= rows * b + a * b:
        return _onednn(left.t(), right.t())
    return _onednn(right.t(), left.t()).t().contiguous()


class _Linear(torch.autograd.Function):
    """The forward product of rows [N, in] and the two of the backward pass, all by oneDNN."""

    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, transposed: bool
    ) -> torch.Tensor:
        count, rows = len(rows), _padded(rows)
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight)
        ctx.transposed = transposed
        return _onednn(rows, weight.t() if transposed else weight, bias)[:count]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        count, upstream = len(upstream), _padded(upstream)
        d_rows = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_rows = _onednn(upstream, weight if ctx.transposed else weight.t())[:count]
        if ctx.needs_input_grad[1]:
            d_weight = _transposed_product(rows, upstream) if ctx.transposed else _transposed_product(upstream, rows)
        if ctx.needs_input_grad[2]:
            d_bias = upstream.sum(dim=0)
        return d_rows, d_weight, d_bias, None
