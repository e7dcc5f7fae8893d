"""The gradient of a policy loss with respect to hidden states and output embedding, in three products.

Within a PPO mini-batch the derivative of the loss with respect to each log-prob is known as soon as that log-prob is,
so the gradients of hidden rows and head weight are formed at once. That takes three matrix products with the head
(forward, two gradients) and keeps nothing of size [N, V]; to recompute the logits in the backward pass would take four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from trl_step.head.tiles import (
    ChunkBuffers,
    OutputHead,
    RowChunk,
    RowSoftmax,
    TiledSoftmax,
    column_tiles,
    compute_dtype,
    row_chunks,
    tile_logits,
    tile_of,
    wide,
)

LogprobGradient = Callable[[slice, torch.Tensor], torch.Tensor]
"""(rows, their log-probs [n]) -> d loss / d log-prob [n]."""


class _Errors(NamedTuple):
    """The rows e = (p - onehot(label)) (1 - tanh²) of one chunk, in tiles; without a soft cap, e = p - onehot(label).

    A label's own entry is 0 in the tiles; it is in `of_labels`, in float32 at least: if p is near 1, the difference
    would be lost in the dtype of the product.
    """

    labels: torch.Tensor
    """[n]"""
    softmax: TiledSoftmax
    tiles: list[tuple[slice, torch.Tensor]]
    """columns, [n, v] in the dtype of the product; to be multiplied by the tile's factors"""
    of_labels: torch.Tensor
    """[n, 1]"""
    surplus: torch.Tensor | None
    """[n, 1]: what the expected logit has over the label's, as far as no product with the weight shows it"""

    def times(self, weight: torch.Tensor) -> torch.Tensor:
        """e @ weight [V, D] -> [n, D], in the dtype of the softmax."""
        total = self.of_labels * weight[self.labels]
        for k, (columns, tile) in enumerate(self.tiles):
            total.addcmul_(torch.mm(tile, weight[columns]), self.softmax.factors[:, k : k + 1])
        return total

    def add_outer(self, total: torch.Tensor, rows: torch.Tensor, first: bool) -> None:
        """total [V, D] += e.T @ rows [n, D]; over what was there if it is the `first`."""
        for k, (columns, tile) in enumerate(self.tiles):
            scaled = rows * self.softmax.factors[:, k : k + 1]
            place = total[columns]
            if tile.dtype == total.dtype:
                place.addmm_(tile.t(), scaled, beta=0 if first else 1)
                continue
            half = tile.dtype == torch.float16
            addend = _half_product(tile.t(), scaled) if half else torch.mm(tile.t(), scaled.to(tile.dtype))
            if first:
                place.copy_(addend)
            else:
                place.add_(addend)
        of_labels = rows * self.of_labels
        if total.device.type == "cpu":  # on either device, the one that adds in a fixed order
            total.index_add_(0, self.labels, of_labels)
        else:
            total.index_put_((self.labels,), of_labels, accumulate=True)


def _half_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left [V, n] of float16 numbers in 0..1 times `right` [n, D] in float32 -> [V, D] float32.

    Slopes divided by the size of the vocabulary lie below the smallest float16. A power of two, which loses nothing,
    brings the largest of `right` to a size at which n of them can be summed up.
    """
    highest = right.abs().amax().clamp(min=torch.finfo(right.dtype).tiny)
    exponent = torch.floor(torch.log2(2.0**15 / len(right) / highest)).clamp(max=100)
    return torch.mm(left, (right * torch.exp2(exponent)).to(left.dtype)).to(right.dtype) * torch.exp2(-exponent)


def _errors(
    chunk: RowChunk, weight: torch.Tensor, head: OutputHead, temperature: float, buffers: ChunkBuffers
) -> _Errors:
    """One pass over the tiles; `weight` is the head's in the dtype of the product."""
    (rows, _), labels = chunk.hidden.shape, chunk.labels
    softmax, tiles, expected = RowSoftmax(labels), [], []
    buffer = buffers.numbers("policy", rows * len(weight), weight.dtype, weight.device)
    for columns in column_tiles(rows, len(weight), weight.device):
        logits, tanh = tile_logits(chunk.hidden, weight, head, columns, temperature)
        kept = tile_of(buffer, rows, columns)
        errors = softmax.see(logits, columns, out=kept if kept.dtype == logits.dtype else None)
        inside, place = softmax.place(columns)
        errors.scatter_(1, place, torch.where(inside, 0.0, errors.gather(1, place)))
        if tanh is not None:
            expected.append(torch.linalg.vecdot(errors, tanh))
            errors.mul_(1 - tanh.square_())
        elif head.bias is not None:
            # finite, as the weight of a token that the bias excludes is 0
            expected.append(errors @ head.bias[columns].to(errors.dtype).clamp(min=torch.finfo(errors.dtype).min))
        if errors is not kept:
            kept.copy_(errors)
        tiles.append((columns, kept))
    result = softmax.result()
    of_labels = torch.expm1(result.logprobs)
    if not expected:
        return _Errors(labels, result, tiles, of_labels, None)
    surplus = (result.factors * torch.stack(expected, dim=1)).sum(dim=1, keepdim=True)
    if head.softcap is not None:
        tanh = result.label_logits * (temperature / head.softcap)
        surplus = (surplus + of_labels * tanh) * (head.softcap / temperature)
        of_labels = of_labels * (1 - tanh.square())
    elif head.bias is not None:
        surplus = (surplus + of_labels * head.bias[labels].unsqueeze(1)) * (head.scale / temperature)
    return _Errors(labels, result, tiles, of_labels, surplus)


class _PolicyGradientRows(torch.autograd.Function):
    """Returns 0 with the gradients of a loss that is a sum of functions of single log-probs.

    With p the distribution of a row, y its label, h its hidden state, c = scale / temperature and g = d loss / d log
    p(y): d loss / d logits = g (onehot(y) - p), so with the row e = p - onehot(y) (see `_Errors` for a soft cap)

        d loss / d h = -g c (e @ weight),    d loss / d weight = -c sum over rows of g outer(e, h)

    g and c multiply rows of width D, never of width V. The entropy needs no pass over the vocabulary either, as the
    expected logit comes with the first product: H = -log p(y) - c (h . (e @ weight) + e . bias).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        head: OutputHead,
        labels: torch.Tensor,
        temperature: float,
        gradient_of: LogprobGradient,
        dtype: torch.dtype,
        buffers: ChunkBuffers,
        take_gradient: Callable[[torch.Tensor], None] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows_in, weight_in, factor = hidden.to(dtype), weight.to(dtype), head.scale / temperature
        logprobs = torch.empty(labels.shape, dtype=wide(dtype), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        d_hidden = torch.empty_like(rows_in, dtype=wide(dtype))
        d_weight = torch.empty_like(weight, dtype=wide(dtype)) if ctx.needs_input_grad[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide(dtype)) if bias is not None and ctx.needs_input_grad[2] else None
        if d_weight is not None and len(labels) == 0:
            d_weight.zero_()
        for chunk in row_chunks(rows_in, labels, len(weight)):
            rows, states = chunk.rows, chunk.hidden.to(logprobs.dtype)
            errors = _errors(chunk, weight_in, head, temperature, buffers)
            of_labels, times_weight = errors.softmax.logprobs.squeeze(1), errors.times(weight_in)
            surplus = 0.0 if errors.surplus is None else errors.surplus.squeeze(1)
            if head.softcap is None:
                surplus = surplus + factor * torch.linalg.vecdot(states, times_weight)
            logprobs[rows] = of_labels
            # the expected logit over that of the label is what the entropy has over -log p(label)
            entropy[rows] = (-of_labels - surplus).clamp(min=0)  # a rounding may lie below
            slope = -factor * gradient_of(rows, logprobs[rows]).unsqueeze(1)
            d_hidden[rows] = times_weight.mul_(slope)
            if d_weight is not None:
                errors.add_outer(d_weight, states * slope, first=rows.start == 0)
            if d_bias is not None:
                errors.add_outer(d_bias.unsqueeze(1), slope, first=False)
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes, ctx.take_gradient = (hidden.dtype, weight.dtype), take_gradient
        ctx.mark_non_differentiable(logprobs, entropy)
        return hidden.new_zeros((), dtype=wide(dtype)), logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the policy gradient was handed out by an earlier backward pass; run the forward again")
        (d_hidden, d_weight, d_bias), ctx.gradients = ctx.gradients, None
        hidden_dtype, weight_dtype = ctx.dtypes
        # a look at the factor makes a GPU wait; on a CPU it saves a pass over the head's gradient
        if upstream.device.type != "cpu" or upstream.item() != 1.0:
            for gradient in (d_hidden, d_weight, d_bias):
                if gradient is not None:
                    gradient.mul_(upstream)
        gradients = [
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in ((d_hidden, hidden_dtype), (d_weight, weight_dtype), (d_bias, weight_dtype))
        ]
        if gradients[1] is not None and ctx.take_gradient is not None:
            ctx.take_gradient(gradients[1])
        return (*gradients, *[None] * 7)


class PolicyGradientRows(NamedTuple):
    """`anchor`: a 0-d zero whose backward carries the gradients; add it to the loss. The rest is [N]."""

    anchor: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor


def policy_gradient_rows(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: OutputHead,
    gradient_of: LogprobGradient,
    temperature: float = 1.0,
    buffers: ChunkBuffers | None = None,
    take_gradient: Callable[[torch.Tensor], None] | None = None,
) -> PolicyGradientRows:
    """Log-probs and entropies, and the gradient of a loss that is a sum of functions of single log-probs.

    Args:
        hidden: [N, D], with its autograd history
        labels: [N] int64
        gradient_of: called once per chunk, gives d loss / d log-prob of its rows
        temperature, buffers: as in `exact_divergence`
        take_gradient: called in the backward pass with the gradient of the weight [V, D] that is handed to autograd

    `anchor.backward()` (times any upstream factor) adds to hidden, weight and bias what the loss itself would. It can
    be taken once, also with `retain_graph`: what it hands out is not kept.

    Raises:
        RuntimeError: in a second backward pass, or if the gradient itself is to be differentiated
    """
    settings = temperature, gradient_of, compute_dtype(head.weight), buffers or ChunkBuffers(), take_gradient
    with torch.autocast(hidden.device.type, enabled=False):
        return PolicyGradientRows(*_PolicyGradientRows.apply(hidden, head.weight, head.bias, head, labels, *settings))
