"""Samples laid out as one row of tokens without padding, in which a prompt that several of them begin with stands once.

A stem is what attends to nothing but itself: a shared prompt, or a sample that shares none. A branch is the answer of a
sample after a shared prompt: it attends to that stem and to itself. The row has the stems one after the other, then the
branches; there are none if all prompts differ. B samples, S columns; N tokens in the row; G stems of at most P tokens,
M branches of at most R tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

Upload = Callable[[np.ndarray], torch.Tensor]
"""puts an array on the model's device"""


class PackedRow(NamedTuple):
    """Where the tokens of padded samples lie in the row, and back. All tensors are int64."""

    tokens: torch.Tensor
    """[N], positions in the flattened [B, S]"""
    positions: torch.Tensor
    """[1, N], of each token in its sample, from 0"""
    of_samples: torch.Tensor
    """[B, S], positions in the row; any where a sample has padding"""
    stems: torch.Tensor
    """[G, P], positions in the row; any after the end of a stem"""
    branches: torch.Tensor
    """[M, R], the same of the branches"""
    in_parts: torch.Tensor
    """[N], positions in the stems and the branches, flattened and joined: [G * P + M * R]"""
    stem_of: torch.Tensor
    """[M], the stem before each branch"""
    stem_lengths: torch.Tensor
    """[G]"""

    @classmethod
    def of(
        cls,
        prompts: np.ndarray,
        prompt_lengths: np.ndarray,
        occupied: np.ndarray,
        width: int,
        upload: Upload,
    ) -> PackedRow:
        """The row of some samples.

        Args:
            prompts: int64 [B], equal numbers for equal prompts
            prompt_lengths: int64 [B], in tokens; fewer than the sample has if another has the same prompt
            occupied: int64 [B, 2], the first column of each sample with a token, and the one after its last
            width: S
        """
        _, stem_samples, groups, sizes = np.unique(prompts, return_index=True, return_inverse=True, return_counts=True)
        starts = np.arange(len(prompts)) * width + occupied[:, 0]
        lengths = occupied[:, 1] - occupied[:, 0]
        branch_samples = np.flatnonzero(sizes[groups] > 1)
        skipped = prompt_lengths[branch_samples]
        stem_lengths = np.where(sizes > 1, prompt_lengths[stem_samples], lengths[stem_samples])
        stems = _Parts.of(stem_lengths, 0)
        branches = _Parts.of(lengths[branch_samples] - skipped, stems.tokens)

        of_stems = starts[stem_samples][stems.owner] + stems.within
        of_branches = (starts[branch_samples] + skipped)[branches.owner] + branches.within
        of_samples = np.zeros(len(prompts) * width, dtype=np.int64)
        for start, group in zip(starts, groups, strict=True):
            own = np.arange(stem_lengths[group])
            of_samples[start + own] = stems.start[group] + own
        of_samples[of_branches] = stems.tokens + np.arange(branches.tokens)

        return cls(
            upload(np.concatenate((of_stems, of_branches))),
            upload(np.concatenate((stems.within, skipped[branches.owner] + branches.within))[None]),
            upload(of_samples.reshape(len(prompts), width)),
            upload(stems.padded()),
            upload(branches.padded()),
            upload(np.concatenate((stems.in_padded(), stems.padded().size + branches.in_padded()))),
            upload(groups[branch_samples]),
            upload(stem_lengths),
        )

    def arguments(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Those of a model's forward, for padded ids [B, S]."""
        ids = self.pack(input_ids)
        # without a mask, transformers would look for packed samples in the positions
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": self.positions}

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """[B, S, ...] -> [1, N, ...]"""
        return padded.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)

    def unpack(self, row: torch.Tensor) -> torch.Tensor:
        """[1, N, ...] -> [B, S, ...], with any tokens in the padding."""
        return row.squeeze(0).index_select(0, self.of_samples.flatten()).unflatten(0, self.of_samples.shape)


class _Parts(NamedTuple):
    """Sequences one after the other in the row."""

    start: np.ndarray
    """position of each in the row"""
    lengths: np.ndarray
    owner: np.ndarray
    """of every token, the index of its sequence"""
    within: np.ndarray
    """of every token, its index in the sequence"""

    @classmethod
    def of(cls, lengths: np.ndarray, start: int) -> _Parts:
        """Of these lengths; the first begins at `start`."""
        ends = np.cumsum(lengths)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        return cls(start + ends - lengths, lengths, owner, np.arange(int(lengths.sum())) - (ends - lengths)[owner])

    @property
    def tokens(self) -> int:
        return len(self.owner)

    def padded(self) -> np.ndarray:
        """Positions in the row, [n, longest]; after the end of a sequence those of its first token."""
        columns = np.arange(int(self.lengths.max(initial=0)))
        return self.start[:, None] + np.where(columns < self.lengths[:, None], columns, 0)

    def in_padded(self) -> np.ndarray:
        """Of every token, its position in the flattened `padded`."""
        return self.owner * int(self.lengths.max(initial=0)) + self.within
