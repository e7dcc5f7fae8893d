"""What is known of a batch before its first update, and mini-batches of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from trl_step.models.shortcuts.frozen_trunk import FrozenTrunk
from trl_step.trainer.batches.positions import Places, upload


class RolledForward(NamedTuple):
    """What policy and reference say about a batch. Tensors are [B, T] unless said otherwise."""

    inputs: dict[str, torch.Tensor]
    """padded model inputs, each [B, S]"""
    places: Places
    """where the tokens stand, known on the host"""
    masks: torch.Tensor
    logprobs: torch.Tensor
    values: torch.Tensor
    ref_logprobs: torch.Tensor
    distributions: tuple[torch.Tensor, torch.Tensor] | None = None
    """log-probs of the whole vocabulary by policy and reference [B, T, V], for a subclass's own penalty"""
    divergence: torch.Tensor | None = None
    """the exact divergence, where it is asked for and no subclass wants to compute it from `distributions`"""
    trunk: FrozenTrunk | None = None
    """what the frozen bottom layers made of this batch"""

    def non_finite(self) -> ValueError | None:
        """An error that names the first sample whose log-probs or values are not finite, if there is one."""
        for name in ("logprobs", "ref_logprobs", "values"):
            bad = (~torch.isfinite(getattr(self, name)) & self.masks.bool()).any(dim=1)
            if bool(bad.any()):
                return ValueError(
                    f"sample {int(bad.nonzero()[0])}: the {name} of its response are not finite; the weights may hold "
                    "NaN, or the precision is too low"
                )
        return None


class Rollout(NamedTuple):
    """What a batch, or a mini-batch of it, is trained on. Tensors are [B, T] unless said otherwise."""

    queries: list[torch.Tensor]
    responses: list[torch.Tensor]
    inputs: dict[str, torch.Tensor]
    """padded model inputs, each [B, S]"""
    places: Places
    """where the tokens stand, known on the host"""
    masks: torch.Tensor
    logprobs: torch.Tensor
    """old log-probs"""
    values: torch.Tensor
    """old values"""
    advantages: torch.Tensor
    returns: torch.Tensor
    trunk: FrozenTrunk | None = None
    trunk_states: torch.Tensor | None = None
    """hidden states [B, S, D] that enter the first layer which trains, where the layers below are frozen"""

    @classmethod
    def of(
        cls,
        rolled: RolledForward,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        values: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
    ) -> Rollout:
        """What was rolled forward, with old values, advantages and returns."""
        return cls(
            queries,
            responses,
            rolled.inputs,
            rolled.places,
            rolled.masks,
            rolled.logprobs,
            values,
            advantages,
            returns,
            rolled.trunk,
            None if rolled.trunk is None else rolled.trunk.states,
        )

    def take(self, part: np.ndarray) -> Rollout:
        """The samples `part`. An empty `part` gives one sample of which no token counts: while other processes
        still have samples, this one goes along with it."""
        empty = len(part) == 0
        part = np.zeros(1, dtype=np.int64) if empty else part
        index, places = upload(part, self.masks.device), self.places.take(part)
        masks = self.masks[index]
        return Rollout(
            [self.queries[i] for i in part],
            [self.responses[i] for i in part],
            {key: value[index] for key, value in self.inputs.items()},
            places._replace(counted=np.zeros_like(places.counted)) if empty else places,
            torch.zeros_like(masks) if empty else masks,
            self.logprobs[index],
            self.values[index],
            self.advantages[index],
            self.returns[index],
            self.trunk,
            None if self.trunk_states is None else self.trunk_states[index],
        )

    def out_of_range(self) -> ValueError | None:
        """An error that names a sample whose advantages or returns would make the losses overflow, if there is one."""
        mask = self.masks.bool()
        squares = torch.where(mask, (self.returns - self.values).square(), 0.0).sum(dim=1)
        bad = ~torch.isfinite(squares)
        if not bool(bad.any()):  # one sample too large makes the advantages of all of them NaN
            bad = (~torch.isfinite(self.advantages) & mask).any(dim=1)
        if not bool(bad.any()) and not bool(torch.isfinite(squares.sum())):
            bad = squares == squares.max()
        if not bool(bad.any()):
            return None
        return ValueError(
            f"sample {int(bad.nonzero()[0])}: its rewards or returns are too large for the losses in float32; scale "
            "the scores (use_score_scaling, score_clip), or look for a log-prob that is far from the reference's"
        )

    def narrow(self, inputs: dict[str, torch.Tensor], predicted: slice) -> Rollout:
        """The same samples with narrower `inputs`, of whose predicted positions only `predicted` remain; `places` stay
        those of all columns."""
        return self._replace(
            inputs=inputs,
            masks=self.masks[:, predicted],
            logprobs=self.logprobs[:, predicted],
            values=self.values[:, predicted],
            advantages=self.advantages[:, predicted],
            returns=self.returns[:, predicted],
            trunk_states=(
                None if self.trunk_states is None else self.trunk_states[:, predicted.start : predicted.stop + 1]
            ),
        )
