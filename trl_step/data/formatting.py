"""Turns conversations and instructions into texts, with the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

Formatter = Callable[[Mapping[str, Any]], Any]


def conversations_formatting_function(
    tokenizer: Any, messages_field: Literal["messages", "conversations"]
) -> Formatter:
    """A function from a row to its text, and from a batch of rows to their texts.

    Args:
        tokenizer: has a `chat_template`.
        messages_field: the column with the conversation: a list of `{"role": ..., "content": ...}`.
    """

    def format_rows(examples: Mapping[str, Any]) -> Any:
        conversations = examples[messages_field]
        if isinstance(conversations[0], list):
            return [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations]
        return tokenizer.apply_chat_template(conversations, tokenize=False)

    return format_rows


def instructions_formatting_function(tokenizer: Any) -> Formatter:
    """Like `conversations_formatting_function`, for rows with a `prompt` and its `completion`."""

    def text_of(prompt: str, completion: str) -> str:
        conversation = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return tokenizer.apply_chat_template(conversation, tokenize=False)

    def format_rows(examples: Mapping[str, Any]) -> Any:
        prompts, completions = examples["prompt"], examples["completion"]
        if isinstance(prompts, list):
            return [text_of(*pair) for pair in zip(prompts, completions, strict=True)]
        return text_of(prompts, completions)

    return format_rows


def get_formatting_func_from_dataset(dataset: Any, tokenizer: Any) -> Formatter | None:
    """The function that turns the rows of `dataset` into texts, or None if its columns match neither format.

    Args:
        dataset: `datasets.Dataset`: a column `messages` or `conversations` of `role` and `content`, or exactly the
            columns `prompt` and `completion`, of strings.
        tokenizer: has a `chat_template`.
    """
    from datasets import Dataset, IterableDataset

    if not isinstance(dataset, (Dataset, IterableDataset)):
        return None
    features = features_of(dataset)
    if features is None:
        return None
    known = known_formats()
    messages_fields: tuple[Literal["messages", "conversations"], ...] = ("messages", "conversations")
    for name in messages_fields:
        if _entries(features.get(name)) == _entries(known["chatml"]):
            return conversations_formatting_function(tokenizer, name)
    if dict(features) == known["instruction"]:
        return instructions_formatting_function(tokenizer)
    return None


def known_formats() -> dict[str, Any]:
    """Name of a format -> its features: of the column with the messages, or of the whole row."""
    from datasets import Value

    text = Value("string")
    return {"chatml": [{"content": text, "role": text}], "instruction": {"completion": text, "prompt": text}}


def features_of(dataset: Any) -> Any:
    """The features of a dataset, or those of the first row of a stream that does not know them; None if it is empty."""
    from datasets import Dataset

    if dataset.features is not None:
        return dataset.features
    first = next(iter(dataset), None)
    return None if first is None else Dataset.from_list([first]).features


def _entries(feature: Any) -> Any:
    """The entry type of a list column, in any of the ways to declare a list."""
    if isinstance(feature, list):
        return feature[0]
    return getattr(feature, "feature", None)
