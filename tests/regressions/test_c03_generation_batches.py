"""Row C3: generation sorts by length, cuts batches by tokens, shrinks them when memory is short, keeps the order."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.generation_tools import BatchWatcher, answer, ragged_queries, same, tiny_gpt2

LENGTHS = [3, 17, 1, 6, 12, 6, 2, 16, 9]


def test_batches_hold_queries_of_like_length_and_answers_keep_the_order() -> None:
    model, queries = tiny_gpt2(), ragged_queries(*LENGTHS)
    want = [answer(model, [query])[0] for query in queries]
    watcher = BatchWatcher(model)
    got = answer(model, queries, batch_size=3, token_budget=1)
    assert watcher.shapes == [(3, 17), (3, 9), (3, 3)]
    assert same(got, want)


def test_a_batch_grows_to_the_token_budget() -> None:
    model, queries = tiny_gpt2(), ragged_queries(*LENGTHS)
    watcher = BatchWatcher(model)
    answer(model, queries, batch_size=1, token_budget=60, max_new_tokens=3)
    for rows, width in watcher.shapes:
        assert rows == 1 or (width + 3) * rows <= 60
    assert watcher.shapes == [(3, 17), (5, 9), (1, 1)]


def test_batch_size_is_a_floor() -> None:
    model = tiny_gpt2()
    watcher = BatchWatcher(model)
    answer(model, ragged_queries(*LENGTHS), batch_size=4, token_budget=30)
    assert [rows for rows, _ in watcher.shapes] == [4, 4, 1]


def test_out_of_memory_halves_the_batch_and_goes_on() -> None:
    model, queries = tiny_gpt2(), ragged_queries(*LENGTHS)
    want = answer(model, queries)
    watcher = BatchWatcher(model, most_rows=2)
    assert same(answer(model, queries), want)
    assert [rows for rows, _ in watcher.shapes] == [2, 2, 2, 2, 1]


def test_a_row_that_does_not_fit_alone_is_an_error() -> None:
    model = tiny_gpt2()
    BatchWatcher(model, most_rows=0)
    with pytest.raises(torch.OutOfMemoryError):
        answer(model, ragged_queries(3, 4))


def test_other_errors_are_not_retried() -> None:
    model, calls = tiny_gpt2(), []

    def generate(**kwargs):
        calls.append(len(kwargs["input_ids"]))
        raise RuntimeError("shape mismatch")

    model.generate = generate
    with pytest.raises(RuntimeError, match="shape mismatch"):
        answer(model, ragged_queries(3, 4, 5))
    assert calls == [3]


def test_callers_settings_are_not_changed() -> None:
    model, queries = tiny_gpt2(), ragged_queries(3, 4)
    settings = {"max_new_tokens": [2, 3], "eos_token_id": [4], "stopping_criteria": []}
    before = {key: list(value) for key, value in settings.items()}
    originals = [query.clone() for query in queries]
    answer(model, queries, **settings)
    assert settings == before
    assert same(queries, originals)
