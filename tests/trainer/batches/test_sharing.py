"""Which samples have one query, and how they are put together."""

from __future__ import annotations

import numpy as np
import torch

from trl_step.trainer.batches.sharing import Line, PassSize, line_up, number_queries
from trl_step.trainer.engine.memory_budget import MemoryBudget


def tokens(*ids: int) -> torch.Tensor:
    return torch.tensor(ids)


def test_equal_queries_have_equal_numbers() -> None:
    found = number_queries([tokens(1, 2), tokens(1), tokens(1, 2), tokens(2, 1), tokens(1)])
    assert found is not None
    assert found.tolist() == [0, 1, 0, 2, 1]


def test_nothing_is_numbered_if_all_queries_differ() -> None:
    assert number_queries([tokens(1, 2), tokens(1), tokens(2, 1)]) is None


def test_the_size_of_a_pass_by_hand() -> None:
    one = PassSize().plus(10, 0)
    assert (one.tokens, one.is_packed) == (10, False)
    two = one.plus(9, 6)  # 10 + 3 of 2 * 10
    assert (two.tokens, two.is_packed) == (13, True)
    few = one.plus(9, 2)  # 10 + 7 are more than 0.8 of 2 * 10
    assert (few.tokens, few.is_packed) == (20, False)


def test_the_first_sample_of_a_pass_repeats_nothing() -> None:
    assert PassSize().plus(10, 6) == PassSize().plus(10, 0)


def test_ragged_samples_are_padded_unless_they_share() -> None:
    assert PassSize().plus(10, 0).plus(1, 0).tokens == 20


def test_without_equal_queries_long_samples_come_first() -> None:
    line = line_up(np.array([3, 7, 5, 7]), None, None)
    assert line.samples.tolist() == [1, 3, 2, 0]
    assert line.lengths.tolist() == [7, 7, 5, 3]
    assert line.repeated.tolist() == [0, 0, 0, 0]


def test_samples_of_one_query_follow_each_other() -> None:
    lengths, queries = np.array([6, 7, 8, 10, 9]), np.array([0, 1, 0, 2, 0])
    line = line_up(lengths, queries, np.array([4, 5, 4, 6, 4]))
    assert line.samples.tolist() == [3, 4, 2, 0, 1]
    assert line.repeated.tolist() == [0, 0, 4, 4, 0]
    assert line_up(lengths, queries, None).repeated.tolist() == [0] * 5


def passes(line: Line, size: int) -> list[list[int]]:
    return [one.samples.tolist() for one in line.passes(size)]


def test_a_pass_takes_more_samples_if_they_share_a_query() -> None:
    """Two samples of ten tokens are 20; six that share eight are 8 + 6 * 2, and a seventh is too much."""
    alone = Line(np.arange(5), np.full(5, 10), np.zeros(5, dtype=np.int64))
    assert passes(alone, 2) == [[0, 1], [2, 3], [4]]
    group = Line(np.arange(6), np.full(6, 10), np.array([0, 8, 8, 8, 8, 8]))
    assert passes(group, 2) == [[0, 1, 2, 3, 4, 5]]
    group = Line(np.arange(7), np.full(7, 10), np.array([0, 8, 8, 8, 8, 8, 8]))
    assert passes(group, 2) == [[0, 1, 2, 3, 4, 5], [6]]


def test_samples_of_one_query_stay_in_one_pass() -> None:
    """Of two groups of 8 + 3 * 2 and two singles, three samples of ten at a time."""
    line = Line(np.arange(8), np.full(8, 10), np.array([0, 8, 8, 0, 8, 8, 0, 0]))
    assert passes(line, 3) == [[0, 1, 2, 3, 4, 5], [6, 7]]
    assert passes(line, 2) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_group_that_does_not_pay_is_cut() -> None:
    line = Line(np.arange(4), np.full(4, 10), np.array([0, 1, 1, 1]))
    assert passes(line, 2) == [[0, 1], [2, 3]]


def test_a_budget_counts_a_shared_query_once() -> None:
    assert [part.tolist() for part in MemoryBudget(20).split([10] * 5)] == [[0, 1], [2, 3], [4]]
    assert [part.tolist() for part in MemoryBudget(16).split([10] * 5, [0, 8, 8, 8, 8])] == [[0, 1, 2, 3], [4]]
    assert [part.tolist() for part in MemoryBudget(9).split([10] * 2, [0, 8])] == [[0], [1]]
