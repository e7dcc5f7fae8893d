"""Where the tokens of a padded batch stand, known on the host.

A GPU works behind the host, and to ask it where tokens stand is to wait for all that is still queued. So it is asked
once for a batch, and mini-batches are cut from the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The same numbers on `device`, without waiting for it."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    # only from pinned memory does a copy to a GPU leave the host alone
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Chosen(NamedTuple):
    """N counted positions of a mini-batch, row by row."""

    positions: torch.Tensor
    """int64 [N], in the flattened [b, T]"""
    shape: tuple[int, int]
    """[b, T]"""

    @classmethod
    def of(cls, mask: torch.Tensor) -> Chosen:
        """Where `mask` [b, T] is 1; waits for a GPU."""
        return cls(mask.flatten().nonzero().squeeze(1), (mask.shape[0], mask.shape[1]))

    @property
    def rows(self) -> torch.Tensor:
        """The same positions [N] in the flattened [b, S = T + 1]."""
        return self.positions + torch.div(self.positions, max(self.shape[1], 1), rounding_mode="floor")

    def predicted(self, ids: torch.Tensor) -> torch.Tensor:
        """The tokens [N] of `ids` [b, S] that these positions predict."""
        return ids.flatten().index_select(0, self.rows + 1)

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """[b, T] -> [N]"""
        return values.flatten().index_select(0, self.positions)

    def spread(self, flat: torch.Tensor) -> torch.Tensor:
        """[N] -> [b, T], 0 elsewhere."""
        return flat.new_zeros(self.shape[0] * self.shape[1]).index_copy(0, self.positions, flat).view(self.shape)


class Places(NamedTuple):
    """Of b samples, in NumPy arrays."""

    counted: np.ndarray
    """bool [b, T]"""
    occupied: tuple[np.ndarray, ...]
    """for each padded input of the model, the predicted one last, int64 [b, 2]: the first column with a token, and the
    one behind the last"""
    lengths: np.ndarray
    """int64 [b], tokens of the predicted input"""
    left_padded: bool
    """whether padding stands in front of any sample's tokens in the whole batch, in any input"""

    @classmethod
    def of(cls, mask: torch.Tensor, attention_masks: Sequence[torch.Tensor]) -> Places:
        """From tensors on any device: `mask` [B, T], and attention masks [B, S], the predicted input's last."""
        masks = [attention_mask.cpu().numpy().astype(bool) for attention_mask in attention_masks]
        occupied = [
            np.stack((used.argmax(axis=1), used.shape[1] - used[:, ::-1].argmax(axis=1)), axis=1) for used in masks
        ]
        left_padded = not all(used[:, 0].all() for used in masks)
        return cls(mask.cpu().numpy().astype(bool), tuple(occupied), masks[-1].sum(axis=1), left_padded)

    def take(self, part: np.ndarray) -> Places:
        """The samples `part`."""
        occupied = tuple(one[part] for one in self.occupied)
        return self._replace(counted=self.counted[part], occupied=occupied, lengths=self.lengths[part])

    def columns(self) -> list[slice]:
        """For each input, from the first to the last column that any sample uses."""
        return [slice(int(one[:, 0].min()), int(one[:, 1].max())) for one in self.occupied]

    def chosen(self, predicted: slice, device: torch.device) -> Chosen:
        """The counted ones of the predicted positions `predicted` (of T)."""
        counted = self.counted[:, predicted]
        return Chosen(upload(np.flatnonzero(counted), device), (counted.shape[0], counted.shape[1]))
