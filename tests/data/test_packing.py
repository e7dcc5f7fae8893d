from __future__ import annotations

import itertools
import random

import pytest

from tests import tiny
from tests.trainer.text import text_tools
from trl_step.data.packing import ConstantLengthDataset

ROWS = [{"text": " ".join(f"w{10 + i}" for _ in range(i + 1))} for i in range(6)]


def packed(**options: object) -> ConstantLengthDataset:
    defaults = {"dataset_text_field": "text", "seq_length": 5, "shuffle": False}
    return ConstantLengthDataset(text_tools.tokenizer(), ROWS, **{**defaults, **options})


def tokens(dataset: ConstantLengthDataset, count: int | None = None) -> list[int]:
    return [int(token) for row in itertools.islice(dataset, count) for token in row["input_ids"]]


def stream(separator: bool = True) -> list[int]:
    return [token for i in range(6) for token in [10 + i] * (i + 1) + [tiny.EOS] * separator]


@pytest.mark.parametrize("separator", [True, False])
def test_texts_lie_end_to_end_and_the_rest_is_dropped(separator: bool) -> None:
    whole = stream(separator)
    assert tokens(packed(append_concat_token=separator)) == whole[: len(whole) // 5 * 5]


def test_every_row_is_its_own_labels() -> None:
    for row in packed():
        assert row["input_ids"].tolist() == row["labels"].tolist()
        assert len(row["input_ids"]) == 5


def test_without_an_end_it_begins_anew() -> None:
    rows = tokens(packed(infinite=True, num_of_sequences=1, chars_per_token=100), 20)
    assert len(rows) == 100
    assert rows[: len(stream())] == stream()


def test_a_small_buffer_cuts_after_each_of_its_own_rows() -> None:
    # one text fills a buffer: of each, only the full rows are kept
    rows = tokens(packed(num_of_sequences=1, chars_per_token=0.01))
    assert rows == [13] * 4 + [tiny.EOS] + [14] * 5 + [15] * 5


def test_shuffling_follows_the_global_stream() -> None:
    def run(seed: int) -> list[int]:
        random.seed(seed)
        return tokens(packed(shuffle=True))

    assert run(0) == run(0)
    assert run(0) != run(1)
    assert sorted(run(0)) == sorted(tokens(packed()))


def test_a_function_writes_the_text_and_length_counts_texts() -> None:
    dataset = packed(dataset_text_field=None, formatting_func=lambda row: "w40 " + row["text"])
    assert tokens(dataset)[0] == 40
    assert len(dataset) == 6
    with pytest.raises(ValueError, match="dataset_text_field"):
        packed(dataset_text_field=None)


def test_an_end_token_with_the_id_0_separates() -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.eos_token = "<pad>"
    assert ConstantLengthDataset(tokenizer, ROWS, "text", eos_token_id=7).concat_token_id == 0


def test_a_tokenizer_without_an_end_token_needs_one() -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.eos_token = None
    with pytest.warns(UserWarning, match="eos_token_id=7"):
        assert ConstantLengthDataset(tokenizer, ROWS, "text", eos_token_id=7).concat_token_id == 7
