"""Which samples answer the same prompt, over all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence

import torch

from trl_step.algorithms.advantages.group import Groups

Together = Callable[[Callable[[], list[Hashable]]], list[list[Hashable]]]
"""(own work) -> the results of all processes, in their order"""


def group_samples(
    queries: Sequence[torch.Tensor], group_ids: list[Hashable] | None, together: Together, index: int
) -> Groups:
    """The groups of a batch; every process calls it.

    Args:
        queries: token ids, each [Q_i]
        group_ids: of each sample; None: equal queries are a group
        together: collects lists of all processes
        index: number of this process
    """

    def of_queries() -> list[Hashable]:
        return [hashlib.blake2b(query.cpu().numpy().tobytes(), digest_size=16).digest() for query in queries]

    lists = together(lambda: of_queries() if group_ids is None else group_ids)
    numbers: dict[Hashable, int] = {}
    everyone = [numbers.setdefault(one, len(numbers)) for ids in lists for one in ids]
    start = sum(len(ids) for ids in lists[:index])
    device = queries[0].device
    return Groups(torch.tensor(everyone, dtype=torch.int64, device=device), slice(start, start + len(lists[index])))


def nothing_to_compare(groups: Groups) -> ValueError | None:
    """An error if every group has one sample."""
    count = len(groups.everyone)
    if int(groups.everyone.max()) + 1 < count:
        return None
    return ValueError(
        f"no query repeats among the {count} samples, so there is no group of answers to compare: give step several "
        "responses to each query (the query is then in queries once for each of them), or group_ids="
    )
