from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.trainer.text import text_tools
from trl_step.data.collators import (
    DataCollatorForCompletionOnlyLM,
    DataCollatorForTexts,
    DPODataCollatorWithPadding,
    RewardDataCollatorWithPadding,
    occurrences,
    pad_to_length,
)

ANSWER, QUESTION = "w20 w21", "w30"


def labels(texts: list[str], question: str | list[int] | None = None, answer: str | list[int] = ANSWER) -> list[list]:
    tokenizer = text_tools.tokenizer()
    collator = DataCollatorForCompletionOnlyLM(answer, question, tokenizer=tokenizer)
    return collator([tokenizer(text) for text in texts])["labels"].tolist()


def test_only_what_follows_the_last_answer_counts() -> None:
    found = labels(["w5 w20 w21 w6 w7", "w20 w21 w8 w20 w21", "w20 w21 w8"])
    assert found == [[-100, -100, -100, 6, 7], [-100] * 5, [-100, -100, 8, -100, -100]]


def test_every_answer_of_a_conversation_counts() -> None:
    text = "w30 w5 w20 w21 w6 w30 w7 w20 w21 w8 w9"
    assert labels([text], QUESTION) == [[-100] * 4 + [6] + [-100] * 4 + [8, 9]]


def test_a_conversation_cut_off_on_either_side() -> None:
    left = "w5 w20 w21 w6 w30 w7 w20 w21 w8"
    right = "w30 w5 w20 w21 w6 w30 w7 w8 w9"
    assert labels([left, right], QUESTION) == [
        [-100] * 3 + [6] + [-100] * 4 + [8],
        [-100] * 4 + [6] + [-100] * 4,
    ]


@pytest.mark.parametrize(("question", "missing"), [(None, "response template 'w20 w21'"), (QUESTION, "instruction")])
def test_a_text_without_a_template_is_left_out_and_told(question: str | None, missing: str) -> None:
    text = "w5 w6" if question is None else "w5 w20 w21 w6"
    with pytest.warns(UserWarning, match=f"sample 0 of the batch has no {missing}"):
        assert labels([text], question) == [[-100] * len(text.split())]


def test_templates_as_token_ids() -> None:
    text = "w30 w5 w20 w21 w6"
    assert labels([text], [30], [20, 21]) == labels([text], QUESTION) == [[-100] * 4 + [6]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w30 w5 w30 w6 w20 w21 w7", [-100] * 6 + [7]),
        ("w30 w5 w20 w21 w6 w20 w21 w7 w30 w8 w20 w21 w9", [-100] * 4 + [6, -100, -100, 7] + [-100] * 4 + [9]),
        ("w20 w21 w6 w20 w21 w7 w30 w8 w20 w21 w9 w30", [-100, -100, 6, -100, -100, 7] + [-100] * 4 + [9, -100]),
        ("w30 w5 w20 w21 w6 w30 w7 w30 w8 w20 w21 w9", [-100] * 4 + [6] + [-100] * 6 + [9]),
    ],
)  # fmt: skip
def test_questions_and_answers_that_follow_each_other(text: str, expected: list[int]) -> None:
    assert labels([text], QUESTION) == [expected]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("masked", [True, False])
def test_end_tokens_of_the_text_count_where_they_pad_as_well(side: str, masked: bool) -> None:
    tokenizer = text_tools.tokenizer(side)
    tokenizer.pad_token = tokenizer.eos_token
    rows = [[30, 5, 20, 21, 6, 1], [30, 5, 20, 21, 7, 1, 30, 8, 20, 21, 9, 1]]
    examples = [{"input_ids": row, **({"attention_mask": [1] * len(row)} if masked else {})} for row in rows]
    filling = [-100] * 6
    expected = {
        "texts": [rows[0], rows[1]],
        "last": [[-100] * 4 + [6, 1], [-100] * 10 + [9, 1]],
        "turns": [[-100] * 4 + [6, 1], [-100] * 4 + [7, 1] + [-100] * 4 + [9, 1]],
    }
    collators = {
        "texts": DataCollatorForTexts(tokenizer, mlm=False),
        "last": DataCollatorForCompletionOnlyLM(ANSWER, tokenizer=tokenizer),
        "turns": DataCollatorForCompletionOnlyLM(ANSWER, QUESTION, tokenizer=tokenizer),
    }
    for name, collator in collators.items():
        short, long = expected[name]
        padded = [*short, *filling] if side == "right" else [*filling, *short]
        assert collator(examples)["labels"].tolist() == [padded, long], name


def test_rows_that_are_padded_already() -> None:
    tokenizer = text_tools.tokenizer()
    row = {"input_ids": [5, 6, 0, 0], "attention_mask": [1, 1, 0, 0]}
    for example in (row, {"input_ids": row["input_ids"]}, row["input_ids"]):
        assert DataCollatorForTexts(tokenizer, mlm=False)([example])["labels"].tolist() == [[5, 6, -100, -100]]
    tokenizer.pad_token = tokenizer.unk_token
    unknown = {"input_ids": [5, 3, 6], "attention_mask": [1, 1, 1]}
    assert DataCollatorForTexts(tokenizer, mlm=False)([unknown])["labels"].tolist() == [[5, 3, 6]]


def test_occurrences_may_overlap() -> None:
    assert occurrences([1, 1], [1, 1, 1, 2, 1, 1]) == [0, 1, 4]


def test_pad_to_length_along_any_dimension() -> None:
    tensor = torch.ones(1, 2, dtype=torch.long)
    assert pad_to_length(tensor, 4, -1).tolist() == [[1, 1, -1, -1]]
    assert pad_to_length(tensor, 2, 0, dim=0).tolist() == [[1, 1], [0, 0]]
    assert pad_to_length(tensor, 1, 0) is tensor


def test_pairs_are_padded_by_themselves() -> None:
    rows = [
        {"input_ids_chosen": [5] * n, "attention_mask_chosen": [1] * n, "input_ids_rejected": [6],
         "attention_mask_rejected": [1], "margin": n}
        for n in (1, 3)
    ]  # fmt: skip
    batch = RewardDataCollatorWithPadding(text_tools.tokenizer())(rows)
    assert batch["input_ids_chosen"].tolist() == [[5, 0, 0], [5, 5, 5]]
    assert batch["input_ids_rejected"].shape == (2, 1)
    assert batch["margin"].tolist() == [1.0, 3.0]
    longer = RewardDataCollatorWithPadding(text_tools.tokenizer(), padding="max_length", max_length=5)(rows)
    assert longer["input_ids_chosen"].shape == longer["input_ids_rejected"].shape == (2, 5)
    del rows[1]["attention_mask_rejected"]
    with pytest.raises(ValueError, match="row 1 of the batch has no attention_mask_rejected"):
        RewardDataCollatorWithPadding(text_tools.tokenizer())(rows)


def test_prompts_of_a_decoder_are_padded_on_the_left() -> None:
    rows = [
        {"prompt_input_ids": [4] * n, "prompt_attention_mask": [1] * n, "chosen_input_ids": [5] * n,
         "chosen_labels": [5] * n, "reference_chosen_logps": float(n), "prompt": "x" * n}
        for n in (1, 2)
    ]  # fmt: skip
    batch = DPODataCollatorWithPadding(pad_token_id=9)(rows)
    assert batch["prompt_input_ids"].tolist() == [[9, 4], [4, 4]]
    assert batch["prompt_attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert batch["chosen_input_ids"].tolist() == [[5, 9], [5, 5]]
    assert batch["chosen_labels"].tolist() == [[5, -100], [5, 5]]
    assert batch["reference_chosen_logps"].tolist() == [1.0, 2.0]
    assert batch["prompt"] == ["x", "xx"]
    encoder = DPODataCollatorWithPadding(pad_token_id=9, is_encoder_decoder=True)(rows)
    assert encoder["prompt_input_ids"].tolist() == [[4, 9], [4, 4]]
    with pytest.raises(ValueError, match=r"set tokenizer.pad_token"):
        DPODataCollatorWithPadding(pad_token_id=None)(rows)


def test_a_template_that_holds_the_padding_token_is_found() -> None:
    tokenizer = text_tools.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    collator = DataCollatorForCompletionOnlyLM([tokenizer.eos_token_id, 20], tokenizer=tokenizer)
    rows = [{"input_ids": [5, tokenizer.eos_token_id, 20, 6, 7]}, {"input_ids": [tokenizer.eos_token_id, 20, 8]}]
    assert collator(rows)["labels"].tolist() == [[-100] * 3 + [6, 7], [-100, -100, 8, -100, -100]]


def test_a_template_has_tokens() -> None:
    for answer, question in (("", None), ([], None), (ANSWER, "")):
        with pytest.raises(ValueError, match="has no tokens"):
            labels(["w5"], question, answer)


def test_a_class_that_pads_on_the_left_is_left_to_it() -> None:
    class LeftTokenizer(PreTrainedTokenizerFast):
        padding_side = "left"

    plain = text_tools.tokenizer("left")
    left = LeftTokenizer(tokenizer_object=plain.backend_tokenizer, pad_token="<pad>")
    rows = [
        {f"{part}_{side}": [5] * length for side in ("chosen", "rejected") for part in ("input_ids", "attention_mask")}
        for length in (1, 2)
    ]
    for tokenizer, first in ((plain, [5, 0]), (left, [0, 5])):
        assert RewardDataCollatorWithPadding(tokenizer)(rows)["input_ids_chosen"][0].tolist() == first
