"""The gradient of a policy loss with respect to hidden states and output embedding, in three products.

Within a PPO mini-batch the derivative of the loss with respect to each log-prob is known as soon as that log-prob is,
so the gradients of hidden rows and head weight are formed at once. That takes three matrix products with the head
(forward, two gradients) and keeps nothing of size [N, V]; recomputing the logits in the backward pass would take four.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from trl_step.head.products import product
from trl_step.head.tiles import (
    ChunkBuffers,
    OutputHead,
    RowChunk,
    RowSoftmax,
    TiledSoftmax,
    column_tiles,
    compute_dtype,
    logits_of,
    row_chunks,
    tile_logits,
    tile_of,
    wide,
)
from trl_step.head.weight_gradient import WeightGradient

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
            total.addcmul_(product(tile, weight[columns]), self.softmax.factors[:, k : k + 1])
        return total

    def add_outer(self, total: WeightGradient, rows: torch.Tensor, first: bool) -> None:
        """total [V, D] += e.T @ rows [n, D]; over what was there if it is the `first`."""
        for k, (columns, tile) in enumerate(self.tiles):
            total.add(columns, tile.t(), rows * self.softmax.factors[:, k : k + 1], first)
        total.add_rows(self.labels, rows * self.of_labels)


def _errors(
    chunk: RowChunk, weight: torch.Tensor, head: OutputHead, temperature: float, buffers: ChunkBuffers
) -> _Errors:
    """One pass over the tiles; `weight` is the head's in the dtype of the product."""
    (rows, _), labels = chunk.hidden.shape, chunk.labels
    softmax, tiles, expected, buffer = RowSoftmax(labels), [], [], None
    for columns in column_tiles(rows, len(weight), weight.device):
        raw = torch.mm(chunk.hidden, weight[columns].t())
        inside, place = softmax.place(columns)
        kept = softmax.see_product(raw, head, columns, temperature, keep=True)
        if kept is not None:
            tiles.append((columns, kept.scatter_(1, place, torch.where(inside, 0.0, kept.gather(1, place)))))
            continue
        logits, tanh = logits_of(raw, head, columns, temperature)
        if buffer is None:
            buffer = buffers.numbers("policy", rows * len(weight), weight.dtype, weight.device)
        kept = tile_of(buffer, rows, columns)
        errors = softmax.see(logits, columns, out=kept if kept.dtype == logits.dtype else None)
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


class _Mixed(NamedTuple):
    """The rows a (p - onehot(label)) + b p (log p + H) of one chunk, over `size`; with a soft cap as in `_Errors`."""

    errors: _Errors
    entropy: torch.Tensor
    """[n, 1], H"""
    size: torch.Tensor
    """[n, 1]: the larger of |a| and |b|, so that what is multiplied in the dtype of the product is of order 1"""


def _mixed(
    chunk: RowChunk,
    weight: torch.Tensor,
    head: OutputHead,
    temperature: float,
    buffers: ChunkBuffers,
    slope_of: Callable[[torch.Tensor], torch.Tensor],
    entropy_slope: torch.Tensor,
) -> _Mixed:
    """As `_errors`, for a loss that depends on log-probs and entropies.

    Args:
        slope_of: log-probs [n] -> a = d loss / d log-prob [n]
        entropy_slope: b = d loss / d entropy, [n]
    """
    (rows, _), labels, dtype = chunk.hidden.shape, chunk.labels, wide(weight.dtype)
    softmax, tiles = RowSoftmax(labels), []
    buffer = buffers.numbers("mixed", rows * len(weight), dtype, weight.device)
    for columns in column_tiles(rows, len(weight), weight.device):
        kept = tile_of(buffer, rows, columns)
        softmax.see(tile_logits(chunk.hidden, weight, head, columns, temperature).values, columns, out=kept)
        inside, place = softmax.place(columns)
        kept.scatter_(1, place, torch.where(inside, 0.0, kept.gather(1, place)))
        tiles.append((columns, kept))
    result, tiny = softmax.result(), torch.finfo(dtype).tiny
    log_factors = result.factors.clamp(min=tiny).log()

    def log_p(k: int, kept: torch.Tensor) -> torch.Tensor:
        return kept.clamp(min=tiny).log_().add_(log_factors[:, k : k + 1])

    p_label = result.logprobs.exp()
    entropy = torch.where(p_label > 0, -p_label * result.logprobs, 0.0)
    for k, (_, kept) in enumerate(tiles):
        entropy -= result.factors[:, k : k + 1] * torch.linalg.vecdot(kept, log_p(k, kept)).unsqueeze(1)
    entropy.clamp_(min=0)
    a, b = slope_of(result.logprobs.squeeze(1)).unsqueeze(1), entropy_slope.unsqueeze(1)
    size = torch.maximum(a.abs(), b.abs()).clamp(min=tiny)
    a, b = a / size, b / size
    to_tanh = 0.0 if head.softcap is None else temperature / head.softcap
    top = result.peak + result.log_total
    mixed = []
    for k, (columns, kept) in enumerate(tiles):
        log_probability = log_p(k, kept)
        if head.softcap is not None:
            kept.mul_(1 - (log_probability + top).mul_(to_tanh).square_())
        kept.mul_(log_probability.add_(entropy).mul_(b).add_(a))
        mixed.append((columns, kept.to(weight.dtype)))
    of_labels = a * torch.expm1(result.logprobs) + torch.where(
        p_label > 0, b * p_label * (result.logprobs + entropy), 0.0
    )
    if head.softcap is not None:
        of_labels = of_labels * (1 - (result.label_logits * to_tanh).square())
    return _Mixed(_Errors(labels, result, mixed, of_labels, None), entropy, size)


class _PolicyGradientRows(torch.autograd.Function):
    """Returns 0 with the gradients of a loss whose slopes at log-probs and entropies are known.

    With p the distribution of a row, y its label, h its hidden state, c = scale / temperature and g = d loss / d log
    p(y): d loss / d logits = g (onehot(y) - p), so with the row e = p - onehot(y) (see `_Errors` for a soft cap)

        d loss / d h = -g c (e @ weight),    d loss / d weight = -c sum over rows of g outer(e, h)

    g and c multiply rows of width D, never of width V. The entropy needs no pass over the vocabulary either, as the
    expected logit comes with the first product: H = -log p(y) - c (h . (e @ weight) + e . bias). If the loss depends on
    it, d H / d logits = -p (log p + H) is one more element-wise term in the tiles (see `_mixed`), and no more products.
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
        entropy_gradient: torch.Tensor | None,
        dtype: torch.dtype,
        buffers: ChunkBuffers,
        take_gradient: Callable[[torch.Tensor], None] | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows_in, weight_in, factor = hidden.to(dtype), weight.to(dtype), head.scale / temperature
        logprobs = torch.empty(labels.shape, dtype=wide(dtype), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        # each row is written once: bfloat16 has the range of float32, and takes half the bytes until the backward pass.
        # What is handed out is rounded to it anyway; an upstream factor that is no power of 2 rounds a second time
        d_hidden = torch.empty_like(hidden, dtype=hidden.dtype if hidden.dtype == torch.bfloat16 else wide(dtype))
        none = len(labels) == 0
        d_weight = WeightGradient(weight, dtype, none) if ctx.needs_input_grad[1] else None
        trains_bias = bias is not None and ctx.needs_input_grad[2]
        d_bias = WeightGradient(bias.unsqueeze(1), dtype, none) if trains_bias else None
        kept_bytes = weight_in.element_size() + (0 if entropy_gradient is None else logprobs.element_size())
        for chunk in row_chunks(rows_in, labels, len(weight), kept_bytes):
            rows, states = chunk.rows, chunk.hidden.to(logprobs.dtype)
            if entropy_gradient is None:
                errors = _errors(chunk, weight_in, head, temperature, buffers)
                of_labels, times_weight = errors.softmax.logprobs.squeeze(1), errors.times(weight_in)
                surplus = 0.0 if errors.surplus is None else errors.surplus.squeeze(1)
                if head.softcap is None:
                    surplus = surplus + factor * torch.linalg.vecdot(states, times_weight)
                logprobs[rows] = of_labels
                # the expected logit over that of the label is what the entropy has over -log p(label)
                entropy[rows] = (-of_labels - surplus).clamp(min=0)  # rounding may make it negative
                slope = -factor * gradient_of(rows, logprobs[rows]).unsqueeze(1)
            else:
                slope_of = partial(gradient_of, rows)
                mixed = _mixed(chunk, weight_in, head, temperature, buffers, slope_of, entropy_gradient[rows])
                errors, times_weight, slope = mixed.errors, mixed.errors.times(weight_in), -factor * mixed.size
                logprobs[rows], entropy[rows] = errors.softmax.logprobs.squeeze(1), mixed.entropy.squeeze(1)
            d_hidden[rows] = times_weight.mul_(slope)
            first = rows.start == 0
            if d_weight is not None:
                errors.add_outer(d_weight, states * slope, first)
            if d_bias is not None:
                errors.add_outer(d_bias, slope, first)
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtype, ctx.take_gradient = hidden.dtype, take_gradient
        ctx.mark_non_differentiable(logprobs, entropy)
        return hidden.new_zeros((), dtype=wide(dtype)), logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the policy gradient was handed out by an earlier backward pass; run the forward again")
        (d_hidden, d_weight, d_bias), ctx.gradients = ctx.gradients, None
        # a look at the factor makes a GPU wait; on a CPU it saves a pass over the head's gradient
        factor = None if upstream.device.type == "cpu" and upstream.item() == 1.0 else upstream
        of_hidden = (d_hidden if factor is None else d_hidden.mul_(factor)).to(ctx.dtype)
        of_weight = None if d_weight is None else d_weight.handed_out(factor)
        of_bias = None if d_bias is None else d_bias.handed_out(factor).squeeze(1)
        if of_weight is not None and ctx.take_gradient is not None:
            ctx.take_gradient(of_weight)
        return (of_hidden, of_weight, of_bias, *[None] * 8)


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
    entropy_gradient: torch.Tensor | None = None,
) -> PolicyGradientRows:
    """Log-probs and entropies, and the gradient of a loss whose slopes at them are known.

    Args:
        hidden: [N, D], with its autograd history
        labels: [N] int64
        gradient_of: called once per chunk, gives d loss / d log-prob of its rows
        temperature, buffers: as in `exact_divergence`
        take_gradient: called in the backward pass with the gradient of the weight [V, D] that is handed to autograd
        entropy_gradient: d loss / d entropy of each row, [N]; None: the loss does not depend on entropies

    `anchor.backward()` (times any upstream factor) adds to hidden, weight and bias what the loss itself would. It can
    be taken once, also with `retain_graph`: what it hands out is not kept.

    Raises:
        RuntimeError: in a second backward pass, or if the gradient itself is to be differentiated
    """
    slopes = gradient_of, entropy_gradient
    settings = temperature, *slopes, compute_dtype(head.weight), buffers or ChunkBuffers(), take_gradient
    with torch.autocast(hidden.device.type, enabled=False):
        return PolicyGradientRows(*_PolicyGradientRows.apply(hidden, head.weight, head.bias, head, labels, *settings))
