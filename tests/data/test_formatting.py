from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from tests import tiny
from trl_step import setup_chat_format
from trl_step.data.formatting import get_formatting_func_from_dataset

CONVERSATION = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
TEXT = "<|im_start|>user\nw5<|im_end|>\n<|im_start|>assistant\nw6<|im_end|>\n"


@pytest.fixture
def chat() -> tuple[Any, Any]:
    return setup_chat_format(tiny.gpt2(), tiny.tokenizer(), resize_to_multiple_of=64)


def test_the_model_gets_rows_and_ids_for_the_new_tokens(chat: tuple[Any, Any]) -> None:
    model, tokenizer = chat
    assert model.get_input_embeddings().num_embeddings == 64
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == config.pad_token_id == tokenizer.eos_token_id
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == TEXT
    prompt = tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="'llama' is unknown: use one of chatml"):
        setup_chat_format(model, tokenizer, "llama")


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations(chat: tuple[Any, Any], column: str) -> None:
    rows = Dataset.from_dict({column: [CONVERSATION, CONVERSATION]})
    write = get_formatting_func_from_dataset(rows, chat[1])
    assert write(rows[0]) == TEXT
    assert write(rows[:]) == [TEXT, TEXT]


def test_instructions(chat: tuple[Any, Any]) -> None:
    rows = Dataset.from_dict({"prompt": ["w5"], "completion": ["w6"]})
    write = get_formatting_func_from_dataset(rows, chat[1])
    assert write(rows[0]) == TEXT
    assert write(rows[:]) == [TEXT]


@pytest.mark.parametrize(
    "columns", [{"text": ["w5"]}, {"messages": ["w5"]}, {"prompt": ["w5"], "completion": ["w6"], "more": ["w7"]}]
)
def test_other_columns_are_left_alone(chat: tuple[Any, Any], columns: dict) -> None:
    assert get_formatting_func_from_dataset(Dataset.from_dict(columns), chat[1]) is None
    assert get_formatting_func_from_dataset([columns], chat[1]) is None
