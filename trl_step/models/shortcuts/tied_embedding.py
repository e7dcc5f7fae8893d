"""The gradient of a weight that is input and output embedding at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trl_step.models.inner_model import output_embedding
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import replaced_forward


class JoinedGradient:
    """Collects rows that input embeddings add to the gradient [V, D] which the output embedding forms of their weight.

    Autograd alone would make a second [V, D] for each of them, zeros but for the rows of a few tokens, and add it.
    """

    def __init__(self) -> None:
        self.weight: torch.Tensor | None = None
        """[V, D], set if input embeddings take part"""
        self._hook: Any = None
        self._rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def put(self, gradient: torch.Tensor) -> None:
        """Called by the output embedding's backward pass, with what it returns; it comes before those of the inputs."""
        if self.weight is not None and gradient.dtype == self.weight.dtype:
            self._hook = self.weight.register_hook(self._join)

    def add(self, ids: torch.Tensor, rows: torch.Tensor) -> bool:
        """Leave rows [N, D] for ids [N]; False if no gradient will come that they could join."""
        if self._hook is not None:
            self._rows.append((ids, rows))
        return self._hook is not None

    def _join(self, gradient: torch.Tensor) -> None:
        """Add what was left to autograd's sum [V, D] over the other uses of the weight, which nobody else holds."""
        for ids, rows in self._rows:
            gradient.index_add_(0, ids, rows)
        self._rows.clear()
        self._hook.remove()
        self._hook = None


class _Embedding(torch.autograd.Function):
    """`torch.nn.functional.embedding` with the gradient of its weight joined to that of the output embedding."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, ids: torch.Tensor, padding_id: int | None, joined: JoinedGradient
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.rest = weight.shape, padding_id, joined
        return F.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        shape, padding_id, joined = ctx.rest
        ids, rows = ctx.saved_tensors[0].flatten(), upstream.flatten(0, -2)
        if padding_id is not None:  # as in `torch.nn.Embedding`, padding does not train
            rows = rows * (ids != padding_id).unsqueeze(1)
        if joined.add(ids, rows):
            return None, None, None, None
        return rows.new_zeros(shape).index_add_(0, ids, rows), None, None, None


@contextmanager
def joined_where_tied(model: nn.Module, joined: JoinedGradient) -> Iterator[None]:
    """Inside, the input embeddings on a CPU that share the output embedding's weight add their gradient to `joined`.

    Of sharded weights they do not: there autograd's sum goes on to be divided among processes.

    Args:
        model: a transformers model, or a PeftModel around one
    """
    tied: Any = output_embedding(model).weight
    modules = [module for module in model.modules() if type(module) is nn.Embedding and module.weight is tied]
    modules = [m for m in modules if tied.device.type == "cpu" and not m.scale_grad_by_freq and m.max_norm is None]
    modules = [] if is_sharded(model) else modules
    joined.weight = tied if modules else None
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(replaced_forward(module, partial(_joined, module, joined)))
        yield


def _joined(module: nn.Embedding, joined: JoinedGradient, input: torch.Tensor) -> torch.Tensor:
    return _Embedding.apply(module.weight, input, module.padding_idx, joined)
