from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from trl_step.data.pairs import tokenize_answer, tokenize_pair_for_rewards, tokenize_preference

LETTERS = "abcdef"


@pytest.fixture
def tokenizer() -> Any:
    """Letters, and the merge "ab"."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<s>", *LETTERS, "ab"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(BPE(vocabulary, [("a", "b")])),
        pad_token="<pad>", eos_token="</s>", bos_token="<s>",
    )  # fmt: skip


def ids(text: str) -> list[int]:
    return [3 + LETTERS.index(letter) for letter in text]


AB = 9


def preference(tokenizer: Any, row: dict, length: int = 20, prompt_length: int = 3, mode: str = "keep_end") -> dict:
    def split(prompt: str, answer: str) -> dict:
        return tokenize_answer(tokenizer, prompt, answer)

    return tokenize_preference(row, tokenizer, split, length, prompt_length, mode, -100)


def test_a_merged_token_belongs_to_the_answer(tokenizer: Any) -> None:
    assert tokenize_answer(tokenizer, "cda", "bc") == {
        "prompt_input_ids": ids("cd"), "prompt_attention_mask": [1, 1], "input_ids": [AB, *ids("c")],
        "attention_mask": [1, 1],
    }  # fmt: skip
    assert tokenize_answer(tokenizer, "cd", "ef")["prompt_input_ids"] == ids("cd")


def test_begin_end_and_labels(tokenizer: Any) -> None:
    row = preference(tokenizer, {"prompt": "cd", "chosen": "e", "rejected": "ff"})
    assert row["chosen_input_ids"] == [2, *ids("cde"), 1]
    assert row["chosen_labels"] == [-100] * 3 + [*ids("e"), 1]
    assert row["rejected_labels"] == [-100] * 3 + [*ids("ff"), 1]
    assert row["prompt_input_ids"] == [2, *ids("cd")]
    assert row["rejected_attention_mask"] == [1] * 6


def test_a_merge_on_one_side_shortens_the_prompt_alone(tokenizer: Any) -> None:
    row = preference(tokenizer, {"prompt": "cda", "chosen": "b", "rejected": "c"})
    assert row["prompt_input_ids"] == [2, *ids("cd")]
    assert row["chosen_labels"] == [-100] * 3 + [AB, 1]
    assert row["rejected_labels"] == [-100] * 4 + [*ids("c"), 1]


@pytest.mark.parametrize(("mode", "kept"), [("keep_end", ids("ced")), ("keep_start", [2, *ids("cd")])])
def test_a_long_prompt_is_cut_first(tokenizer: Any, mode: str, kept: list[int]) -> None:
    row = preference(tokenizer, {"prompt": "cdcdced", "chosen": "e", "rejected": "f"}, length=8, mode=mode)
    assert row["prompt_input_ids"] == kept
    assert row["chosen_input_ids"] == [*kept, *ids("e"), 1]


def test_then_both_answers_are_cut(tokenizer: Any) -> None:
    row = preference(tokenizer, {"prompt": "cdcd", "chosen": "efefef", "rejected": "c"}, length=7)
    assert row["chosen_input_ids"] == [*ids("dcd"), *ids("efef")]
    assert row["rejected_input_ids"] == [*ids("dcd"), *ids("c"), 1]


def test_without_a_begin_token_none_is_put_in_front(tokenizer: Any) -> None:
    tokenizer.bos_token = None
    assert preference(tokenizer, {"prompt": "cd", "chosen": "e", "rejected": "f"})["prompt_input_ids"] == ids("cd")


def test_an_unknown_mode_is_named(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="'keep_middle'"):
        preference(tokenizer, {"prompt": "cdcdcd", "chosen": "e", "rejected": "f"}, length=4, mode="keep_middle")


def test_pairs_for_rewards(tokenizer: Any) -> None:
    row = tokenize_pair_for_rewards({"prompt": "c", "chosen": "de", "rejected": "f"}, tokenizer, 2)
    assert row["input_ids_chosen"] == ids("cd")
    assert row["input_ids_rejected"] == ids("cf")
    assert row["attention_mask_chosen"] == [1, 1]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    talk = [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]
    row = tokenize_pair_for_rewards({"chosen": talk, "rejected": talk[:1]}, tokenizer, 9)
    assert (row["input_ids_chosen"], row["input_ids_rejected"]) == (ids("de"), ids("d"))


def test_a_prompt_of_no_length_leaves_the_answers(tokenizer: Any) -> None:
    row = preference(tokenizer, {"prompt": "cdef", "chosen": "ef", "rejected": "f"}, length=4, prompt_length=0)
    assert row["prompt_input_ids"] == []
    assert row["chosen_input_ids"] == [*ids("ef"), 1]


def test_an_answer_without_room_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_prompt_length=4 leaves an answer no room within max_length=4"):
        preference(tokenizer, {"prompt": "cdef", "chosen": "ef", "rejected": "f"}, length=4, prompt_length=4)


def test_answers_need_an_end_token(tokenizer: Any) -> None:
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        preference(tokenizer, {"prompt": "cd", "chosen": "e", "rejected": "ff"})


def test_an_answer_has_the_room_that_a_short_prompt_leaves(tokenizer: Any) -> None:
    row = preference(tokenizer, {"prompt": "c", "chosen": "efefef", "rejected": "f"}, length=8, prompt_length=5)
    assert row["chosen_input_ids"] == [2, *ids("cefefef")]  # eight tokens; there were five
    assert row["rejected_input_ids"] == [2, *ids("cf"), 1]
