"""Passes of a model over a whole batch, mini-batch by mini-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.models.shortcuts.frozen_trunk import FrozenTrunk
from trl_step.trainer.batches.layout import Inputs
from trl_step.trainer.batches.positions import Chosen, Places, upload
from trl_step.trainer.engine.forward import TokenForward
from trl_step.trainer.engine.memory_budget import ForwardSize

Around = Callable[[torch.Tensor, slice, torch.Size], AbstractContextManager[None]]
"""(samples of the mini-batch, its columns of S, [B, S]) -> what surrounds its forward pass"""


def _nothing_around(*_: Any) -> AbstractContextManager[None]:
    return nullcontext()


class Sweep(NamedTuple):
    """All [B, T] float32; `logits` [B, T, V] or None."""

    logprobs: torch.Tensor
    logits: torch.Tensor | None
    values: torch.Tensor


class PairedSweep(NamedTuple):
    """All [B, T] float32; 0 where the mask is 0."""

    logprobs: torch.Tensor
    values: torch.Tensor
    ref_logprobs: torch.Tensor
    divergence: torch.Tensor


def plain_sweep(forward: TokenForward, model: Any, inputs: Inputs, left_padded: bool, size: int) -> Sweep:
    """Release 0.7's pass: every position, full logits, in the batch's own order, with gradients if they are on."""
    count = len(forward.layout.predicted_ids(inputs)[0])
    outputs = [
        forward.everything(model, {key: value[i : i + size] for key, value in inputs.items()}, left_padded)
        for i in range(0, count, size)
    ]
    logprobs, logits, values = (torch.cat(pieces) for pieces in zip(*outputs, strict=True))
    return Sweep(logprobs, logits, values.float())


@torch.no_grad()
def sweep(
    forward: TokenForward,
    sizes: ForwardSize,
    model: Any,
    inputs: Inputs,
    places: Places,
    size: int,
    around: Around = _nothing_around,
    first: np.ndarray | None = None,
) -> Sweep:
    """Log-probs and values of counted tokens, without gradients; long samples share a mini-batch with long ones, and
    each mini-batch is padded to its own longest.

    Args:
        places: where the tokens of `inputs` stand, and which of them count
        size: most samples of a mini-batch
        around: surrounds each pass, see `FrozenTrunk.policy`
        first: samples that go together and ahead of the others, in this order
    """
    ids, _ = forward.layout.predicted_ids(inputs)
    logprobs = torch.zeros(places.counted.shape, device=ids.device)
    values = torch.zeros_like(logprobs)

    def visit(piece: _Piece) -> None:
        with around(*piece.place):
            outputs = forward.chosen(model, piece.inputs, piece.chosen, piece.left_padded)
        logprobs[piece.samples.unsqueeze(1), piece.columns] = outputs.logprobs
        values[piece.samples.unsqueeze(1), piece.columns] = outputs.values.float()

    _visit_by_length(forward, sizes, inputs, places, size, visit, first)
    return Sweep(logprobs, None, values)


@torch.no_grad()
def paired_sweep(
    forward: TokenForward,
    sizes: ForwardSize,
    policy: Any,
    reference: Any,
    as_reference: Callable[[], Any],
    inputs: Inputs,
    places: Places,
    size: int,
    trunk: FrozenTrunk,
    first: np.ndarray | None = None,
) -> PairedSweep:
    """Policy and reference side by side, for the exact divergence: mini-batch by mini-batch, chunk by chunk.

    Args:
        as_reference: context manager in which `reference` is asked
        places: as in `sweep`
        size: most samples of a mini-batch
        trunk: records the policy's passes, and serves the reference's
        first: as in `sweep`
    """
    ids, _ = forward.layout.predicted_ids(inputs)
    outputs = PairedSweep(*(torch.zeros(places.counted.shape, device=ids.device) for _ in range(4)))

    def visit(piece: _Piece) -> None:
        with trunk.policy(*piece.place):
            rows, values = forward.rows(policy, piece.inputs, piece.chosen, piece.left_padded)
        with as_reference(), trunk.reference(*piece.place):
            ref_rows, _ = forward.rows(reference, piece.inputs, piece.chosen, piece.left_padded)
        found = forward.divergence(rows, ref_rows, forward.labels(piece.inputs, piece.chosen))
        for target, flat in zip(outputs, (found.logprobs, values, found.ref_logprobs, found.divergence), strict=True):
            target[piece.samples.unsqueeze(1), piece.columns] = piece.chosen.spread(flat.float())

    _visit_by_length(forward, sizes, inputs, places, size, visit, first)
    return outputs


class _Piece(NamedTuple):
    """Samples that go through the model together, trimmed to what they use."""

    samples: torch.Tensor
    inputs: dict[str, torch.Tensor]
    chosen: Chosen
    predicted: slice
    left_padded: bool
    shape: torch.Size

    @property
    def columns(self) -> torch.Tensor:
        """The predicted positions, int64."""
        return torch.arange(self.predicted.start, self.predicted.stop, device=self.samples.device)

    @property
    def place(self) -> tuple[torch.Tensor, slice, torch.Size]:
        """Where in [B, S] the inputs come from: one column more than is predicted."""
        return self.samples, slice(self.predicted.start, self.predicted.stop + 1), self.shape


def _visit_by_length(
    forward: TokenForward,
    sizes: ForwardSize,
    inputs: Inputs,
    places: Places,
    size: int,
    visit: Callable[[_Piece], None],
    first: np.ndarray | None = None,
) -> None:
    ids, _ = forward.layout.predicted_ids(inputs)

    def pieces(samples: np.ndarray, parts: list[np.ndarray]) -> Iterator[_Piece]:
        for part in parts:
            own, own_places = upload(samples[part], ids.device), places.take(samples[part])
            trimmed, predicted = forward.layout.trim({key: value[own] for key, value in inputs.items()}, own_places)
            chosen = own_places.chosen(predicted, ids.device)
            yield _Piece(own, trimmed, chosen, predicted, places.left_padded, ids.shape)

    ahead = np.empty(0, dtype=np.int64) if first is None else first
    by_length = np.argsort(-places.lengths, kind="stable")
    others = by_length[~np.isin(by_length, ahead)]
    for group in (ahead, others):
        for start in range(0, len(group), size):
            samples = group[start : start + size]

            def work(parts: list[np.ndarray], samples: np.ndarray = samples) -> None:
                for piece in pieces(samples, parts):
                    visit(piece)

            sizes.run(places.lengths[samples].tolist(), work)
