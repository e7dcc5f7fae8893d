"""The cases of `benchmarks/step.py`: shapes that are compared are equal, and groups share their queries."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import CASES, PPO_EPOCHS, Case, quick, quick_names


def test_a_case_has_the_sizes_of_the_case_that_it_is_compared_with() -> None:
    for case in CASES.values():
        like = CASES[case.shape]
        assert like.algorithm == "gae"
        assert replace(case, name=like.name, algorithm="gae", group=like.group, like="") == like


def test_a_group_has_one_query_length() -> None:
    case = Case("ragged", 1, 8, samples=8, query=(3, 10), response=(2, 9), group=4)
    queries = [query for query, _ in case.lengths()]
    assert queries == [3] * 4 + [7] * 4
    assert sorted(response for _, response in case.lengths()) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_quick_runs_every_algorithm_once_for_each_kind_of_model() -> None:
    small = [quick(CASES[name]) for name in quick_names()]
    assert {case.algorithm for case in small} == {case.algorithm for case in CASES.values()}
    assert len({replace(case, name="", like="") for case in small}) == len(small)


def test_a_query_of_a_group_counts_once() -> None:
    """Two answers of 3 to a query of 5, width 1, one layer: a sample of n tokens takes 24 n + 2 n², the head 2 * 7."""
    case = Case("two", 1, 1, samples=2, query=(5, 5), response=(3, 3), vocabulary=7)
    trunk, query, head = 2 * (24 * 8 + 2 * 64), 24 * 5 + 2 * 25, 2 * 7 * 6
    passes = 2 + 3 * PPO_EPOCHS
    assert case.flops() == passes * (trunk + head)
    assert replace(case, group=2).flops() == passes * (trunk - query + head)
