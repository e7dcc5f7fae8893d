"""Which samples answer the same prompt, over all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence

import torch

from trl_step.algorithms.advantages.group import Groups
from trl_step.core import numbered
from trl_step.models.notices import warn_user
from trl_step.trainer.batches.sharing import number_queries

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
    everyone = numbered(one for ids in lists for one in ids)
    start = sum(len(ids) for ids in lists[:index])
    device = queries[0].device
    return Groups(torch.tensor(everyone, dtype=torch.int64, device=device), slice(start, start + len(lists[index])))


def nothing_to_compare(groups: Groups, group_ids: list[Hashable] | None = None) -> ValueError | None:
    """An error if every group has one sample; a warning if the caller of `step` gave such `group_ids`."""
    count = len(groups.everyone)
    if int(groups.everyone.max()) + 1 < count:
        return None
    if group_ids is not None:
        warn_user(
            f"group_ids gives each of the {count} samples a group of its own, so all advantages are 0 and nothing is "
            "learnt from the scores: answers to one prompt have one id"
        )
        return None
    return ValueError(
        f"no query repeats among the {count} samples, so there is no group of answers to compare: give step several "
        "responses to each query (the query is then in queries once for each of them), or group_ids="
    )


def warn_of_mixed_groups(queries: Sequence[torch.Tensor], group_ids: list[Hashable]) -> None:
    """Warn of ids in another order than the queries: they join different queries, and part equal ones.

    Either alone is well: a group may begin with different words, and two tasks with the same.

    Args:
        queries: token ids, each [Q_i]
        group_ids: of each sample
    """
    numbers = number_queries(queries)
    if numbers is None:  # all differ
        return
    first_of_group: dict[Hashable, int] = {}
    first_of_query: dict[int, int] = {}
    joined = parted = None
    for i, (number, group) in enumerate(zip(numbers.tolist(), group_ids, strict=True)):
        first = first_of_group.setdefault(group, i)
        joined = joined or ((first, i) if numbers[first] != number else None)
        first = first_of_query.setdefault(number, i)
        parted = parted or ((first, i) if group_ids[first] != group else None)
    if joined and parted:
        warn_user(
            f"group_ids puts samples {joined[0]} and {joined[1]}, whose queries differ, into one group, and samples "
            f"{parted[0]} and {parted[1]}, whose queries are equal, into two: is it in the order of the queries?"
        )
