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
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from trl_step.ppo.kl import kl_penalty

CHUNK_ELEMENTS = 1 << 24
"""Logits of one chunk: 16 Mi numbers, 64 MiB in float32."""
MIN_CHUNK_ROWS = 128
"""Fewer rows starve the matrix product."""


class ChunkBuffers:
    """The buffers that chunks of logits are computed in.

    Inside `kept` one call hands them to the next: on a CPU the pages of a fresh buffer cost as much as a pass over it.
    """

    def __init__(self) -> None:
        self._keep = False
        self._buffers: dict[str, torch.Tensor] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Buffers live until the end of this context."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
            self._buffers.clear()

    def rows(self, name: str, rows: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised [rows, V] in the dtype and on the device of `like` [V, D]; `name` tells buffers apart that are
        in use at the same time."""
        buffer = self._buffers.get(name)
        fits = buffer is not None and buffer.shape[1] == len(like) and len(buffer) >= rows
        if buffer is None or not fits or (buffer.dtype, buffer.device) != (like.dtype, like.device):
            buffer = like.new_empty((rows, len(like)))
        if self._keep:
            self._buffers[name] = buffer
        return buffer[:rows]


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

    def of(self, labels: torch.Tensor) -> torch.Tensor:
        """The log-probs [n] of the chunk's own among `labels` [N]."""
        return self.logprobs.gather(1, labels[self.rows].unsqueeze(1)).squeeze(1)


def _vocabulary_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    head: OutputHead,
    temperature: float,
    buffers: ChunkBuffers,
    name: str = "policy",
) -> Iterator[_Chunk]:
    """Walk over hidden [N, D] and yield each chunk's log-probs of the whole vocabulary.

    `hidden` and `weight` have the dtype of the product; everything behind the product is float32 at least.
    """
    most = _chunk_rows(weight.shape[0])
    buffer = buffers.rows(name, min(most, len(hidden)), weight)
    for start in range(0, hidden.shape[0], most):
        chunk = hidden[start : start + most]
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
    buffers: ChunkBuffers | None = None,
) -> torch.Tensor:
    """log p(label) of each row, where p = softmax(logits / temperature): [N] float32 (float64 for such a head).

    Args:
        hidden: [N, D], what enters the output embedding
        labels: [N] int64
        temperature: the sampling temperature under which the log-probs are taken
        buffers: to be used again; None: fresh ones
    """
    dtype = _compute_dtype(head.weight)
    logprobs = torch.empty(labels.shape, dtype=_wide(dtype), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        rows, weight = hidden.to(dtype), head.weight.to(dtype)
        for chunk in _vocabulary_logprobs(rows, weight, head, temperature, buffers or ChunkBuffers()):
            logprobs[chunk.rows] = chunk.of(labels)
    return logprobs


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
    buffers: ChunkBuffers | None = None,
) -> Divergence:
    """KL(policy || reference) over the whole vocabulary, row by row, without two [N, V] tensors.

    Args:
        hidden, ref_hidden: [N, D], of policy and reference; their widths may differ, their vocabularies may not
        labels: [N] int64
        temperature, buffers: as in `token_logprobs`
    """
    buffers = buffers or ChunkBuffers()
    dtype = _compute_dtype(head.weight)
    columns = [torch.empty(labels.shape, dtype=_wide(dtype), device=hidden.device) for _ in range(3)]
    with torch.autocast(hidden.device.type, enabled=False):
        ours, theirs = (
            _vocabulary_logprobs(rows.to(dtype), one.weight.to(dtype), one, temperature, buffers, name)
            for rows, one, name in ((hidden, head, "policy"), (ref_hidden, ref_head, "reference"))
        )
        for chunk, ref_chunk in zip(ours, theirs, strict=True):
            columns[0][chunk.rows] = chunk.of(labels)
            columns[1][chunk.rows] = ref_chunk.of(labels)
            columns[2][chunk.rows] = kl_penalty(chunk.logprobs, ref_chunk.logprobs, "full")
    return Divergence(*columns)


LogprobGradient = Callable[[slice, torch.Tensor], torch.Tensor]
"""(rows, their log-probs [n]) -> d loss / d log-prob [n]."""


class _PolicyGradientRows(torch.autograd.Function):
    """Returns 0 with the gradients of a loss that is a sum of functions of single log-probs.

    With p the distribution of a row, y its label, h its hidden state, c = scale / temperature and g = d loss / d log
    p(y): d loss / d logits = g (onehot(y) - p), so with the row e = p - onehot(y)

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
        wide = _wide(dtype)
        logprobs = torch.empty(labels.shape, dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        d_hidden = torch.empty_like(rows_in)
        d_weight = torch.empty_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        if d_weight is not None and len(labels) == 0:
            d_weight.zero_()
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and ctx.needs_input_grad[2] else None
        for chunk in _vocabulary_logprobs(rows_in, weight_in, head, temperature, buffers):
            rows = chunk.rows
            logprobs[rows] = chunk.of(labels)
            slope = -factor * gradient_of(rows, logprobs[rows]).unsqueeze(1)
            error = chunk.logprobs.exp_()
            error.scatter_add_(1, labels[rows].unsqueeze(1), error.new_full(slope.shape, -1.0))
            if chunk.tanh is not None:
                surplus = torch.linalg.vecdot(error, chunk.tanh) * (head.softcap / temperature)
                error.mul_(1 - chunk.tanh.square())
            narrow = error.to(dtype)
            product = torch.mm(narrow, weight_in, out=d_hidden[rows])
            if chunk.tanh is None:
                surplus = factor * torch.linalg.vecdot(rows_in[rows].to(wide), product.to(wide))
                if bias is not None:
                    surplus += factor * (error @ bias.to(wide))
            # the expected logit over that of the label is what the entropy has over -log p(label)
            entropy[rows] = -logprobs[rows] - surplus
            product.mul_(slope)
            if d_weight is not None:
                _add_product(d_weight, narrow, (rows_in[rows] * slope).to(dtype), first=rows.start == 0)
            if d_bias is not None:
                d_bias.add_(slope.squeeze(1) @ error)
        ctx.gradients = d_hidden, d_weight, d_bias
        ctx.dtypes, ctx.take_gradient = (hidden.dtype, weight.dtype), take_gradient
        ctx.mark_non_differentiable(logprobs, entropy)
        return hidden.new_zeros((), dtype=wide), logprobs, entropy

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
        if gradients[1] is not None and ctx.take_gradient is not None:
            ctx.take_gradient(gradients[1])
        return (*gradients, *[None] * 7)


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
    buffers: ChunkBuffers | None = None,
    take_gradient: Callable[[torch.Tensor], None] | None = None,
) -> PolicyGradientRows:
    """Log-probs and entropies, and the gradient of a loss that is a sum of functions of single log-probs.

    Args:
        hidden: [N, D], with its autograd history
        labels: [N] int64
        gradient_of: called once per chunk, gives d loss / d log-prob of its rows
        temperature, buffers: as in `token_logprobs`
        take_gradient: called in the backward pass with the gradient of the weight [V, D] that is handed to autograd

    `anchor.backward()` (times any upstream factor) adds to hidden, weight and bias what the loss itself would.
    """
    settings = temperature, gradient_of, _compute_dtype(head.weight), buffers or ChunkBuffers(), take_gradient
    with torch.autocast(hidden.device.type, enabled=False):
        return PolicyGradientRows(*_PolicyGradientRows.apply(hidden, head.weight, head.bias, head, labels, *settings))


def logprobs_of_logits(logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """The plain, differentiable path: logits [..., V], labels [...] -> [...] float32."""
    scaled = logits.float() / temperature if temperature != 1.0 else logits.float()
    return -F.cross_entropy(scaled.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)
