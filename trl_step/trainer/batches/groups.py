"""Which samples answer the same prompt, over all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from trl_step.core import ReduceSum

Together = Callable[[Callable[[], list[Hashable]]], list[list[Hashable]]]
"""(own work) -> the results of all processes, in their order"""


class Groups(NamedTuple):
    """Groups of answers to one prompt. On several processes a group may lie on any of them."""

    everyone: torch.Tensor
    """int64 [all samples], number of each sample's group, process by process"""
    own: slice
    """the samples of this process among them"""

    def gather(self, values: torch.Tensor, reduce_sum: ReduceSum) -> torch.Tensor:
        """Values [B] of this process -> [all samples]; every process calls it."""
        whole = values.new_zeros(len(self.everyone))
        whole[self.own] = values
        return reduce_sum(whole)


def group_samples(
    queries: Sequence[torch.Tensor], group_ids: list[Hashable] | None, together: Together, index: int
) -> Groups:
    """The groups of a batch; every process calls it.

    Args:
        queries: token ids, each [Q_i]
        group_ids: of each sample; None: equal queries are a group
        together: collects lists of all processes
        index: number of this process

    Raises:
        ValueError: on all processes, if no ids are given and no query repeats.
    """

    def of_queries() -> list[Hashable]:
        return [hashlib.blake2b(query.cpu().numpy().tobytes(), digest_size=16).digest() for query in queries]

    lists = together(lambda: of_queries() if group_ids is None else group_ids)
    numbers: dict[Hashable, int] = {}
    everyone = [numbers.setdefault(one, len(numbers)) for ids in lists for one in ids]
    if group_ids is None and len(numbers) == len(everyone):
        raise ValueError(
            f"no query repeats among the {len(everyone)} samples, so there is no group of answers to compare: give "
            "step several responses to each query (the query is then in queries once for each of them), or group_ids="
        )
    start = sum(len(ids) for ids in lists[:index])
    device = queries[0].device
    return Groups(torch.tensor(everyone, dtype=torch.int64, device=device), slice(start, start + len(lists[index])))
