"""The cases of `benchmarks/step.py`: shapes that are compared are equal, and groups share their queries."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.cases import CASES, Case, quick, quick_names


def test_a_case_has_the_sizes_of_the_case_that_it_is_compared_with() -> None:
    for case in CASES.values():
        like = CASES[case.shape]
        assert like.algorithm == "gae"
        assert replace(case, name=like.name, algorithm="gae", group=1, like="") == like


def test_a_group_has_one_query_length() -> None:
    case = Case("ragged", 1, 8, samples=8, query=(3, 10), response=(2, 9), group=4)
    queries = [query for query, _ in case.lengths()]
    assert queries == [3] * 4 + [7] * 4
    assert sorted(response for _, response in case.lengths()) == [2, 3, 4, 5, 6, 7, 8, 9]


def test_quick_runs_every_algorithm_once_for_each_kind_of_model() -> None:
    small = [quick(CASES[name]) for name in quick_names()]
    assert {case.algorithm for case in small} == {case.algorithm for case in CASES.values()}
    assert len({replace(case, name="", like="") for case in small}) == len(small)
