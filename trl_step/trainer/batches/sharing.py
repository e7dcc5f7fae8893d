"""Samples of one query: which they are, how they are put together, and whether their query should run once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from trl_step.core import numbered

WORTH = 0.8
"""Samples are packed if this share of the tokens of their padded rows is left, or less. Packed, attention copies the
keys and values of a prompt for each of its answers."""


def number_queries(queries: Sequence[torch.Tensor]) -> np.ndarray | None:
    """int64 [B], equal numbers for equal queries; None if all differ.

    Args:
        queries: token ids, each [Q_i]
    """
    ends = np.cumsum([len(query) for query in queries])
    parts = np.split(torch.cat(list(queries)).cpu().numpy(), ends[:-1])
    found = np.array(numbered(part.tobytes() for part in parts))
    return found if found.max() + 1 < len(queries) else None


class PassSize(NamedTuple):
    """How large a forward pass is, as samples are added to it."""

    samples: int = 0
    longest: int = 0
    total: int = 0
    repeated: int = 0
    """tokens of queries that the pass has already"""
    padding_free: bool = False
    """whether samples that repeat nothing may be packed as well"""

    def plus(self, length: int, repeated: int) -> PassSize:
        """With another sample, of which so many tokens are `repeated` from the sample before."""
        again = repeated if self.samples else 0
        longest, total = max(self.longest, length), self.total + length
        return PassSize(self.samples + 1, longest, total, self.repeated + again, self.padding_free)

    @property
    def is_packed(self) -> bool:
        """Whether the samples run in one row, and queries once."""
        packs = self.repeated > 0 or self.padding_free
        return packs and self.total - self.repeated <= WORTH * self.samples * self.longest

    @property
    def tokens(self) -> int:
        """What runs, padding included."""
        return self.total - self.repeated if self.is_packed else self.samples * self.longest

    def fits(self, samples: int) -> bool:
        """Whether it is no larger than a padded pass of that many samples."""
        return self.samples <= samples or (self.is_packed and self.tokens <= samples * self.longest)


class Line(NamedTuple):
    """Samples in the order in which they go through a model."""

    samples: np.ndarray
    """int64 [b], indices in the batch"""
    lengths: np.ndarray
    """int64 [b], tokens of each"""
    repeated: np.ndarray
    """int64 [b], how many of them the sample before begins with, if the model need not run them again"""

    def take(self, part: np.ndarray) -> Line:
        """Some of them."""
        return Line(*(field[part] for field in self))

    def passes(self, size: int) -> list[Line]:
        """Cut for passes without gradients: `size` samples each, or as many more of repeated queries as take no more
        tokens than `size` samples of the longest would. Samples of one query stay together if they fit."""
        cuts: list[int] = []
        current = PassSize()
        groups = np.split(np.arange(len(self.samples)), np.flatnonzero(self.repeated == 0)[1:])
        for group in groups:
            together = self._grown(current, group)
            if together.fits(size):
                current = together
                continue
            for i in group.tolist():
                grown = self._grown(current, [i])
                if i == group[0] or not grown.fits(size):
                    cuts.append(i)
                    grown = self._grown(PassSize(), [i])
                current = grown
        return [self.take(part) for part in np.split(np.arange(len(self.samples)), [cut for cut in cuts if cut])]

    def _grown(self, size: PassSize, more: Sequence[int] | np.ndarray) -> PassSize:
        for i in more:
            size = size.plus(int(self.lengths[i]), int(self.repeated[i]))
        return size


def line_up(lengths: np.ndarray, queries: np.ndarray | None, query_lengths: np.ndarray | None) -> Line:
    """Long samples first, and samples of one query together, where the longest of them is.

    Args:
        lengths: int64 [b]
        queries: int64 [b], equal numbers for equal queries; None: all differ
        query_lengths: int64 [b], the tokens that need not run again after a sample of the same query; None: all run
    """
    if queries is None:
        order = np.argsort(-lengths, kind="stable")
        return Line(order, lengths[order], np.zeros_like(lengths))
    longest = np.zeros(int(queries.max()) + 1, dtype=np.int64)
    np.maximum.at(longest, queries, lengths)
    order = np.lexsort((-lengths, queries, -longest[queries]))
    repeated = np.zeros_like(lengths)
    if query_lengths is not None:
        again = queries[order][1:] == queries[order][:-1]
        repeated[1:] = np.where(again, query_lengths[order][1:], 0)
    return Line(order, lengths[order], repeated)
