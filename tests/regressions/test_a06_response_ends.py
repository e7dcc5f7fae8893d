"""Row A6: an answer ends at the first of any configured end id that the model wrote, and no padding counts."""

from __future__ import annotations

import pytest
import torch

from tests.sampling.generation_tools import EOS, PAD, count_up, tiny_bart, tiny_gpt2


def lists(rows: list[torch.Tensor]) -> list[list[int]]:
    return [row.tolist() for row in rows]


def test_end_ids_in_the_prompt_do_not_end_the_answer() -> None:
    queries = [torch.tensor([4, EOS, 5, EOS]), torch.tensor([EOS, 6])]
    got = count_up(tiny_gpt2(), queries, max_new_tokens=3)
    assert lists(got) == [[2, 3, 4], [7, 8, 9]]


def test_decoder_start_that_equals_the_end_id() -> None:
    model, queries = tiny_bart(), [torch.tensor([4, 5]), torch.tensor([4])]
    assert model.config.decoder_start_token_id == EOS
    got = count_up(model, queries, eos=5)
    assert lists(got) == [[EOS, 2, 3, 4, 5]] * 2


@pytest.mark.parametrize("source", ["generation_config list", "generation_config int", "generation_kwargs"])
def test_every_source_of_end_ids_counts(source: str) -> None:
    model, settings = tiny_gpt2(), {"eos": 7}
    if source == "generation_config list":
        model.generation_config.eos_token_id = [12, 22]
    elif source == "generation_config int":
        model.generation_config.eos_token_id = 12
    else:
        settings["eos_token_id"] = [12]
    got = count_up(model, [torch.tensor([3, 4]), torch.tensor([9])], **settings)
    assert lists(got) == [[5, 6, 7], [10, 11, 12]]


def test_no_padding_counts_where_the_padding_is_another_token() -> None:
    """One row ends early, the other goes on: the first is not filled up with padding."""
    model = tiny_gpt2()
    model.generation_config.eos_token_id = [6]
    short, long = count_up(model, [torch.tensor([3, 4]), torch.tensor([9])], eos=2)
    assert short.tolist() == [5, 6]
    assert len(long) == 8
    assert PAD not in long.tolist()


def test_without_an_end_the_answer_has_full_length() -> None:
    model = tiny_gpt2()
    model.generation_config.eos_token_id = None
    got = count_up(model, [torch.tensor([20]), torch.tensor([9, 8])], eos=None, max_new_tokens=5)
    assert lists(got) == [[21, 22, 0, 1, 2], [9, 10, 11, 12, 13]]


def test_padding_that_equals_the_end_id() -> None:
    got = count_up(tiny_gpt2(), [torch.tensor([3, 4]), torch.tensor([9])], pad_token_id=7, eos=7)
    assert lists(got) == [[5, 6, 7], [10, 11, 12, 13, 14, 15, 16, 17]]
