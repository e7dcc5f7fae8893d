"""Begin and end tokens stand once, although a chat template writes them and the tokenizer adds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from tests import tiny
from tests.trainer.text import text_tools
from tests.trainer.text.text_tools import arguments, classifier
from trl_step import DPOTrainer, IterativeSFTTrainer, RewardConfig, RewardTrainer, SFTTrainer
from trl_step.data.packing import ConstantLengthDataset
from trl_step.data.special_tokens import tokens_of

TALK = [
    {"role": "user", "content": "w10"}, {"role": "assistant", "content": "w30"},
    {"role": "user", "content": "w20"}, {"role": "assistant", "content": "w40"},
]  # fmt: skip
ONCE = [2, 10, 30, 1, 20, 40, 1]
TEXT = "<s> w10 w30 </s> w20 w40 </s>"


@pytest.fixture(params=["<s> $A", "<s> $A </s>"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """Adds a begin token, and an end token or none; its template writes both."""
    adding = text_tools.tokenizer()
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single=request.param, special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    adding.chat_template = (
        "<s> {% for m in messages %}{{ m['content'] }} {% if m['role'] == 'assistant' %}</s> {% endif %}{% endfor %}"
    )
    return adding


def sft(folder: Path, tokenizer: Any, rows: dict, **options: Any) -> list[list[int]]:
    ours = SFTTrainer(
        tiny.gpt2(), arguments(folder), train_dataset=Dataset.from_dict(rows), tokenizer=tokenizer,
        **{"max_seq_length": 7, **options},
    )  # fmt: skip
    return ours.train_dataset["input_ids"][:]


@pytest.mark.parametrize("packing", [False, True])
def test_texts_of_sft(tmp_path: Path, tokenizer: Any, packing: bool) -> None:
    options = {"packing": packing}
    assert sft(tmp_path, tokenizer, {"messages": [TALK, TALK]}, **options) == [ONCE, ONCE]
    assert sft(tmp_path, tokenizer, {"text": [TEXT]}, dataset_text_field="text", **options) == [ONCE]
    pairs = {"prompt": ["w10"], "completion": ["w30"]}
    assert sft(tmp_path, tokenizer, pairs, max_seq_length=4, **options) == [[2, 10, 30, 1]]


def test_a_text_without_them_gets_them(tokenizer: Any) -> None:
    plain = tokenizer("w10 w30")["input_ids"]
    assert plain[:3] == [2, 10, 30]
    assert tokens_of(tokenizer, ["w10 w30", TEXT])["input_ids"] == [plain, ONCE]
    assert tokens_of(tokenizer, ["w10 w30", TEXT], add_special_tokens=False)["input_ids"] == [[10, 30], ONCE]
    ends = len(plain) > 3
    assert tokens_of(tokenizer, [TEXT], 5)["input_ids"] == [[2, 10, 30, 1, 1] if ends else [2, 10, 30, 1, 20]]
    assert tokens_of(tokenizer, []) == {"input_ids": [], "attention_mask": []}


def test_packed_texts_that_end_with_the_separator() -> None:
    rows = [{"text": "w5 w6 </s>"}, {"text": "w7"}]
    packed = ConstantLengthDataset(text_tools.tokenizer(), rows, "text", seq_length=5, shuffle=False)
    assert next(iter(packed))["input_ids"].tolist() == [5, 6, 1, 7, 1]


def test_pairs_of_rewards(tmp_path: Path, tokenizer: Any) -> None:
    rows = Dataset.from_dict({"chosen": [TALK], "rejected": [TALK[:2]]})
    config = arguments(tmp_path, RewardConfig, max_length=16)
    row = RewardTrainer(classifier(), config, tokenizer=tokenizer, train_dataset=rows).train_dataset[0]
    assert (row["input_ids_chosen"], row["input_ids_rejected"]) == (ONCE, [2, 10, 30, 1])
    assert row["attention_mask_chosen"] == [1] * 7


def test_pairs_of_dpo(tmp_path: Path, tokenizer: Any) -> None:
    texts = {"prompt": ["<s> w10"], "chosen": [" w30 </s>"], "rejected": [" w40"]}
    ours = DPOTrainer(
        tiny.gpt2(), args=arguments(tmp_path), train_dataset=Dataset.from_dict(texts), tokenizer=tokenizer,
        max_length=16, max_prompt_length=8,
    )  # fmt: skip
    row = ours.train_dataset[0]
    assert row["prompt_input_ids"] == [2, 10]
    assert (row["chosen_input_ids"], row["rejected_input_ids"]) == ([2, 10, 30, 1], [2, 10, 40, 1])
    assert row["chosen_labels"] == [-100, -100, 30, 1]


def test_steps_of_the_iterative_trainer(tmp_path: Path, tokenizer: Any) -> None:
    ours = IterativeSFTTrainer(tiny.gpt2(), arguments(tmp_path), tokenizer)
    assert ours._tokenize([TEXT], "texts")["input_ids"][0].tolist() == ONCE
