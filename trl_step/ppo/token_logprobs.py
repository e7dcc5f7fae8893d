"""Log-probability and entropy of chosen tokens from hidden states, without keeping [N, V].

The vocabulary is visited in chunks of rows. A chunk's logits live in one buffer, are turned into log-probs in place,
give up what is asked of them, and are overwritten by the next chunk.

`policy_gradient_rows` goes one step further: within a PPO mini-batch the derivative of the loss with respect to each
log-prob is known as soon as that log-prob is, so the gradients of hidden rows and head weight are formed at once.
That takes three matrix products with the head (forward, two gradients) and keeps nothing of size [N, V]; to recompute
the logits in the backward pass would take four.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from trl_step.ppo.kl import kl_penalty

CHUNK_ELEMENTS = 1 << 23
"""Logits of one chunk: 8 Mi numbers, 32 MiB in float32."""
MIN_CHUNK_ROWS = 128
"""Fewer rows starve the matrix product."""


class OutputHead(NamedTuple):
    """logits = softcap * tanh(x / softcap) with x = scale * (hidden @ weight.T + bias); without a soft cap, x."""

    weight: torch.Tensor
    """[V, D]"""
    bias: torch.Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, V], all at once: the definition, for when memory does not matter."""
        product = F.linear(hidden, self.weight, self.bias) * self.scale
        return product if self.softcap is None else self.softcap * torch.tanh(product / self.softcap)


class TokenLogprobs(NamedTuple):
    """Both [N], float32 (float64 for such a head), without a gradient; `entropy` in nats, None if not asked for."""

    logprobs: torch.Tensor
    entropy: torch.Tensor | None


def _compute_dtype(weight: torch.Tensor) -> torch.dtype:
    """What autocast would multiply in, else the dtype of the weight."""
    device_type = weight.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else weight.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What softmax, sums and the head's gradient are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunk_rows(vocabulary: int) -> int:
    return max(CHUNK_ELEMENTS // vocabulary, MIN_CHUNK_ROWS)


class _Chunk(NamedTuple):
    rows: slice
    logprobs: torch.Tensor
    """[n, V]: a view of the buffer that the next chunk overwrites."""
    tanh: torch.Tensor | None
    """[n, V]: logits / softcap, for the derivative of the soft cap."""


def _vocabulary_logprobs(
    hidden: torch.Tensor, weight: torch.Tensor, head: OutputHead, temperature: float
) -> Iterator[_Chunk]:
    """Walk over hidden [N, D] and yield each chunk's log-probs of the whole vocabulary.

    `hidden` and `weight` have the dtype of the product; everything behind the product is float32 at least.
    """
    rows = _chunk_rows(weight.shape[0])
    buffer: torch.Tensor | None = None
    for start in range(0, hidden.shape[0], rows):
        chunk = hidden[start : start + rows]
        if buffer is None:
            buffer = chunk.new_empty((chunk.shape[0], weight.shape[0]))
        logits = torch.mm(chunk, weight.t(), out=buffer[: chunk.shape[0]])
        if head.bias is not None:
            logits = logits.add_(head.bias)
        logits = logits.to(_wide(logits.dtype))
        if head.scale != 1.0:
            logits.mul_(head.scale)
        tanh = None
        if head.softcap is not None:
            tanh = torch.tanh(logits / head.softcap)
            logits = tanh * head.softcap
        if temperature != 1.0:
            logits.div_(temperature)
        yield _Chunk(slice(start, start + chunk.shape[0]), torch.log_softmax(logits, dim=-1, out=logits), tanh)


@torch.no_grad()
def token_logprobs(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: OutputHead,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> TokenLogprobs:
    """log p(label) and the entropy of p for each row, where p = softmax(logits / temperature). No gradient.

    Args:
        hidden: [N, D], what enters the output embedding
        labels: [N] int64
        temperature: the sampling temperature under which the log-probs are taken
    """
    dtype = _compute_dtype(head.weight)
    logprobs = torch.empty(labels.shape, dtype=_wide(dtype), device=hidden.device)
    entropy = torch.empty_like(logprobs) if with_entropy else None
    with torch.autocast(hidden.device.type, enabled=False):
        for chunk in _vocabulary_logprobs(hidden.to(dtype), head.weight.to(dtype), head, temperature):
            logprobs[chunk.rows] = chunk.logprobs.gather(1, labels[chunk.rows].unsqueeze(1)).squeeze(1)
            if entropy is not None:
                entropy[chunk.rows] = _entropy(chunk.logprobs, chunk.logprobs.exp())
    return TokenLogprobs(logprobs, entropy)


def _entropy(logprobs: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """-sum p log p per row: [n, V], [n, V] -> [n], without a third tensor of that size on a CPU."""
    if probabilities.device.type == "cpu" and len(probabilities):
        # dot products row by row read each number once; as one batched product they take ten times as long there
        return -torch.stack([torch.dot(p, log_p) for p, log_p in zip(probabilities, logprobs, strict=True)])
    return -torch.linalg.vecdot(probabilities, logprobs)


class Divergence(NamedTuple):
    """All [N]: log-probs of the labels by policy and reference, and the divergence in nats."""

    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    divergence: torch.Tensor


@torch.no_grad()
def exact_divergence(
    hidden: torch.Tensor,
    ref_hidden: torch.Tensor,
    labels: torch.Tensor,
    head: OutputHead,
    ref_head: OutputHead,
    temperature: float = 1.0,
) -> Divergence:
    """KL(policy || reference) over the whole vocabulary, row by row, without two [N, V] tensors.

    Args:
        hidden, ref_hidden: [N, D], of policy and reference; their widths may differ, their vocabularies may not
        labels: [N] int64
        temperature: as in `token_logprobs`
    """
    dtype = _compute_dtype(head.weight)
    columns = [torch.empty(labels.shape, dtype=_wide(dtype), device=hidden.device) for _ in range(3)]
    with torch.autocast(hidden.device.type, enabled=False):
        ours, theirs = (
            _vocabulary_logprobs(rows.to(dtype), one.weight.to(dtype), one, temperature)
            for rows, one in ((hidden, head), (ref_hidden, ref_head))
        )
        for chunk, ref_chunk in zip(ours, theirs, strict=True):
            label = labels[chunk.rows].unsqueeze(1)
            columns[0][chunk.rows] = chunk.logprobs.gather(1, label).squeeze(1)
            columns[1][chunk.rows] = ref_chunk.logprobs.gather(1, label).squeeze(1)
            columns[2][chunk.rows] = kl_penalty(chunk.logprobs, ref_chunk.logprobs, "full")
    return Divergence(*columns)


LogprobGradient = Callable[[slice, torch.Tensor], torch.Tensor]
"""(rows, their log-probs [n]) -> d loss / d log-prob [n]."""


class _PolicyGradientRows(torch.autograd.Function):
    """Returns 0 with the gradients of a loss that is a sum of functions of single log-probs."""

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows_in, weight_in = hidden.to(dtype), weight.to(dtype)
        logprobs = torch.empty(labels.shape, dtype=_wide(dtype), device=hidden.device)
        entropy = torch.empty_like(logprobs)
        d_hidden = torch.empty_like(rows_in) if ctx.needs_input_grad[0] else None
        d_weight = torch.empty_like(weight, dtype=_wide(dtype)) if ctx.needs_input_grad[1] else None
        if d_weight is not None and len(labels) == 0:
            d_weight.zero_()
        d_bias = torch.zeros_like(bias, dtype=_wide(dtype)) if bias is not None and ctx.needs_input_grad[2] else None
        buffer: torch.Tensor | None = None
        for chunk in _vocabulary_logprobs(rows_in, weight_in, head, temperature):
            rows, label = chunk.rows, labels[chunk.rows].unsqueeze(1)
            logprobs[rows] = chunk.logprobs.gather(1, label).squeeze(1)
            buffer = torch.empty_like(chunk.logprobs) if buffer is None else buffer
            d_logits = torch.exp(chunk.logprobs, out=buffer[: len(label)])
            entropy[rows] = _entropy(chunk.logprobs, d_logits)
            # d log p(label) / d logits = onehot(label) - p, times d loss / d log p, the head's scale and 1/temperature
            slope = (gradient_of(rows, logprobs[rows]) * (head.scale / temperature)).unsqueeze(1)
            d_logits.mul_(-slope).scatter_add_(1, label, slope)
            if chunk.tanh is not None:
                d_logits.mul_(1 - chunk.tanh.square())
            d_product = d_logits.to(dtype)
            if d_hidden is not None:
                torch.mm(d_product, weight_in, out=d_hidden[rows])
            if d_weight is not None:
                _add_product(d_weight, d_product, rows_in[rows], first=rows.start == 0)
            if d_bias is not None:
                d_bias.add_(d_logits.sum(dim=0))
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(logprobs, entropy)
        return hidden.new_zeros((), dtype=_wide(dtype)), logprobs, entropy

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
        return (*gradients, None, None, None, None, None)


def _add_product(total: torch.Tensor, d_product: torch.Tensor, rows: torch.Tensor, first: bool) -> None:
    """total [V, D] += d_product.T [V, n] @ rows [n, D]; the `first` product is written over what was there."""
    if d_product.dtype == total.dtype:
        total.addmm_(d_product.t(), rows, beta=0 if first else 1)
    elif first:
        total.copy_(torch.mm(d_product.t(), rows))
    else:
        total.add_(torch.mm(d_product.t(), rows))


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
) -> PolicyGradientRows:
    """Log-probs and entropies, and the gradient of a loss that is a sum of functions of single log-probs.

    Args:
        hidden: [N, D], with its autograd history
        labels: [N] int64
        gradient_of: called once per chunk, gives d loss / d log-prob of its rows
        temperature: as in `token_logprobs`

    `anchor.backward()` (times any upstream factor) adds to hidden, weight and bias what the loss itself would.
    """
    dtype = _compute_dtype(head.weight)
    with torch.autocast(hidden.device.type, enabled=False):
        return PolicyGradientRows(
            *_PolicyGradientRows.apply(hidden, head.weight, head.bias, head, labels, temperature, gradient_of, dtype)
        )


def logprobs_of_logits(logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The plain, differentiable path: logits [..., V], labels [...] -> [...] float32."""
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    return -F.cross_entropy(scaled.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
