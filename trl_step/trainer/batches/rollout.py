"""One container for a batch, from its checks to its statistics, and for mini-batches of it.

A GPU runs asynchronously: reading positions from it waits for everything that is queued. So they are read once for a
batch, as `TokenPositions`, and those of mini-batches are cut from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from trl_step.algorithms.objective import Minibatch
from trl_step.models.shortcuts.frozen_trunk import FrozenTrunk
from trl_step.models.shortcuts.packed_row import PackedRow
from trl_step.models.shortcuts.shared_prompts import Shared

Later: TypeAlias = Any
"""a tensor, None until it is known"""


class Precomputed(NamedTuple):
    """What the caller of `step` already has, each a list of [R_i] floating point; None: to be computed."""

    old_logprobs: list[torch.Tensor] | None = None
    ref_logprobs: list[torch.Tensor] | None = None
    old_values: list[torch.Tensor] | None = None
    sampling_logprobs: list[torch.Tensor] | None = None


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The same numbers on `device`, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # only copies from pinned memory do not block the host
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class CountedPositions(NamedTuple):
    """The N counted positions of a mini-batch, row by row."""

    flat: torch.Tensor
    """int64 [N], in the flattened [b, T]"""
    in_inputs: torch.Tensor
    """int64 [N], the same positions in the flattened [b, S = T + 1]"""
    shape: tuple[int, int]
    """[b, T]"""

    @classmethod
    def of(cls, counted: np.ndarray, device: torch.device) -> CountedPositions:
        """Where `counted`, bool [b, T], is true."""
        flat = upload(np.flatnonzero(counted), device)
        rows, width = counted.shape
        return cls(flat, flat + torch.div(flat, max(width, 1), rounding_mode="floor"), (rows, width))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """[b, T] -> [N]"""
        return values.flatten().index_select(0, self.flat)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[N] -> [b, T], 0 elsewhere."""
        return values.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, self.flat, values).view(self.shape)


class TokenPositions(NamedTuple):
    """Of b samples, in NumPy arrays."""

    counted: np.ndarray
    """bool [b, T], the predicted positions that count"""
    occupied: tuple[np.ndarray, ...]
    """for each padded input of the model, the predicted one last, int64 [b, 2]: the first column with a token, and the
    one after the last"""
    lengths: np.ndarray
    """int64 [b], tokens of the predicted input"""
    left_padded: bool
    """whether padding precedes the tokens of any sample of the whole batch, in any input"""

    @classmethod
    def of(cls, mask: torch.Tensor, attention_masks: Sequence[torch.Tensor]) -> TokenPositions:
        """From tensors on any device: `mask` [B, T], and attention masks [B, S], the predicted input's last."""
        masks = [attention_mask.cpu().numpy().astype(bool) for attention_mask in attention_masks]
        occupied = [
            np.stack((used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)), axis=1) for used in masks
        ]
        left_padded = not all(used[:, 0].all() for used in masks)
        return cls(mask.cpu().numpy().astype(bool), tuple(occupied), masks[-1].sum(axis=1), left_padded)

    def take(self, samples: np.ndarray) -> TokenPositions:
        """Those of some samples."""
        occupied = tuple(one[samples] for one in self.occupied)
        return self._replace(counted=self.counted[samples], occupied=occupied, lengths=self.lengths[samples])


class Rollout(NamedTuple):
    """A batch, or a mini-batch of it. Tensors are [B, T] unless said otherwise, and None until they are known."""

    queries: list[torch.Tensor]
    """token ids, each [Q_i] int64"""
    responses: list[torch.Tensor]
    """token ids, each [R_i] int64; of an encoder-decoder model with the decoder's start token"""
    inputs: dict[str, torch.Tensor]
    """padded model inputs, each [B, S]"""
    positions: TokenPositions
    """which positions hold tokens, and which count, known on the host"""
    mask: torch.Tensor
    """int64, 1 where a position predicts a counted response token"""
    query_numbers: np.ndarray | None = None
    """int64 [B], equal for equal queries, if those may run once"""
    padding_free: bool = False
    """whether samples may run in one row, without padding"""
    scores: Later = None
    """[B], or [B, T] if any sample was given a score per token"""
    old_logprobs: Later = None
    old_values: Later = None
    """None too if nothing needs values"""
    ref_logprobs: Later = None
    sampling_logprobs: Later = None
    """None unless they were given"""
    divergence: Later = None
    """the exact divergence of policy and reference, if it was asked for"""
    distributions: tuple[torch.Tensor, torch.Tensor] | None = None
    """log-probs of the whole vocabulary by policy and reference [B, T, V], for a subclass's own penalty"""
    rewards: Later = None
    non_score_rewards: Later = None
    kls: Later = None
    advantages: Later = None
    """known from the start if they were given"""
    returns: Later = None
    importance: Later = None
    """factor on each policy loss, if the sampler's log-probs correct it"""
    positive: Later = None
    """factor on each log-prob in the term of samples with a positive score, if there is one"""
    weights: Later = None
    """of each token in the mean loss of the mini-batch that this is"""
    trunk: FrozenTrunk | None = None
    trunk_states: Later = None
    """hidden states [B, S, D] that enter the first layer which trains, if the layers below are frozen"""

    def known(self, mask: torch.Tensor, **found: torch.Tensor) -> Rollout:
        """With the numbers that models `found`, each [B, T]; what the caller had already stays, where `mask` is 1."""
        numbers: dict[str, Any] = dict(found)
        for name in Precomputed._fields:
            if getattr(self, name) is not None:
                numbers[name] = torch.where(mask.bool(), getattr(self, name), 0.0)
        return self._replace(**numbers)

    def take(self, samples: np.ndarray) -> Rollout:
        """Some samples. An empty `samples` gives one sample of which no token counts: it is how this process takes part
        while others still have samples."""
        empty = len(samples) == 0
        samples = np.zeros(1, dtype=np.int64) if empty else samples
        index, positions = upload(samples, self.mask.device), self.positions.take(samples)
        taken: dict[str, Any] = {
            name: value[index] for name, value in self._asdict().items() if isinstance(value, torch.Tensor)
        }
        if empty:
            positions = positions._replace(counted=np.zeros_like(positions.counted))
            taken["mask"] = torch.zeros_like(taken["mask"])
        return self._replace(
            **taken,
            queries=[self.queries[i] for i in samples],
            responses=[self.responses[i] for i in samples],
            inputs={key: value[index] for key, value in self.inputs.items()},
            positions=positions,
            query_numbers=None if self.query_numbers is None else self.query_numbers[samples],
        )

    def narrow(self, inputs: dict[str, torch.Tensor], predicted: slice) -> Rollout:
        """The same samples with narrower `inputs`, of whose predicted positions only `predicted` remain; `positions`
        stay those of all columns."""
        cut: dict[str, Any] = {
            name: value[:, predicted]
            for name, value in self._asdict().items()
            if isinstance(value, torch.Tensor) and value.shape == self.mask.shape
        }
        if self.trunk_states is not None:
            cut["trunk_states"] = self.trunk_states[:, predicted.start : predicted.stop + 1]
        return self._replace(inputs=inputs, **cut)

    def as_minibatch(self) -> Minibatch:
        """What the losses need."""
        return Minibatch(**{name: getattr(self, name) for name in Minibatch._fields})

    def non_finite(self) -> ValueError | None:
        """An error that names the first sample whose log-probs or values are not finite, if there is one."""
        for name in Precomputed._fields:
            if getattr(self, name) is None:
                continue
            bad = (~torch.isfinite(getattr(self, name)) & self.mask.bool()).any(dim=1)
            if bool(bad.any()):
                return ValueError(
                    f"sample {int(bad.nonzero()[0])}: the {name.removeprefix('old_')} of its response are not finite; "
                    "the weights may hold NaN, or the precision is too low"
                )
        return None

    def out_of_range(self) -> ValueError | None:
        """An error that names a sample whose advantages or returns would make the losses overflow, if there is one."""
        mask = self.mask.bool()
        errors = self.advantages if self.returns is None else self.returns - self.old_values
        squares = torch.where(mask, errors.square(), 0.0).sum(dim=1)
        bad = ~torch.isfinite(squares)
        if not bool(bad.any()):  # one sample too large makes the advantages of all of them NaN
            bad = (~torch.isfinite(self.advantages) & mask).any(dim=1)
        if not bool(bad.any()) and not bool(torch.isfinite(squares.sum())):
            bad = squares == squares.max()
        if not bool(bad.any()):
            return None
        what = "rewards or returns" if self.returns is not None else "advantages"
        return ValueError(
            f"sample {int(bad.nonzero()[0])}: its {what} are too large for the losses in float32; scale "
            "the scores (use_score_scaling, score_clip), or look for a log-prob that is far from the reference's"
        )


class Piece(NamedTuple):
    """Samples that go through the model together, without the columns that none of them uses."""

    batch: Rollout
    counted: CountedPositions
    labels: torch.Tensor
    """int64 [N], the tokens that the counted positions predict"""
    samples: Any
    """their indices in the whole batch, int64 [b], or a slice of all of it"""
    predicted: slice
    """their columns of the whole batch's T"""
    columns: slice
    """their columns of the whole batch's S: one more"""
    shared: Shared | None
    """how their queries run once, if they do"""

    @property
    def row(self) -> PackedRow | None:
        """The row that the model runs on, if that is not [b, S]."""
        return self.shared if isinstance(self.shared, PackedRow) else None

    def put(self, whole: torch.Tensor, own: torch.Tensor) -> None:
        """Write `own` [b, t] to its place in `whole` [B, T]."""
        whole[self.samples, self.predicted] = own.to(whole.dtype)
