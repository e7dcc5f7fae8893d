"""`trl.data_utils` of TRL 0.11: rows of chats, which our trainers take as they are, made into rows of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANSWERS = ("chosen", "rejected", "completion")


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether a row holds chats: a list of messages with `role` and `content` as prompt, answer or `messages`."""
    return any(_is_chat(example.get(name)) for name in ("messages", "prompt", *ANSWERS))


def _is_chat(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and "role" in first and "content" in first


def apply_chat_template(example: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The texts of a row of chats: `messages` becomes `text`; prompt, answers and `label` keep their names.

    An answer's text is what it adds to that of its prompt.

    Raises:
        KeyError: there is neither `messages` nor a prompt nor an answer.
        ValueError: the template writes the prompt in another way if an answer follows.
    """

    def written(messages: Any, **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    answers = [name for name in ANSWERS if name in example]
    if not answers and not example.keys() & {"messages", "prompt"}:
        raise KeyError(f"a row of chats needs messages, a prompt or an answer, but this one has {sorted(example)}")
    row: dict[str, Any] = {"text": written(example["messages"])} if "messages" in example else {}
    if "prompt" in example:
        row["prompt"] = written(example["prompt"], add_generation_prompt=True)
    for name in answers:
        whole = written([*example.get("prompt", ()), *example[name]])
        if not whole.startswith(row.get("prompt", "")):
            raise ValueError(
                f"the chat template writes {whole!r}, which does not begin with the prompt {row['prompt']!r}"
            )
        row[name] = whole.removeprefix(row.get("prompt", ""))
    return row | ({"label": example["label"]} if "label" in example else {})


def maybe_apply_chat_template(example: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    """The texts of a row of chats; another row as it is."""
    return apply_chat_template(example, tokenizer) if is_conversational(example) else example


def extract_prompt(example: Mapping[str, Any]) -> dict[str, Any]:
    """What `chosen` and `rejected` begin with, as the prompt, and the rest of both."""
    chosen, rejected = example["chosen"], example["rejected"]
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((number for number, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    return {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}


def maybe_extract_prompt(example: dict[str, Any]) -> dict[str, Any]:
    """The same for a row of two answers without a prompt, or with one that is text where the answers are chats."""
    if not example.keys() >= {"chosen", "rejected"}:
        return example
    if "prompt" in example and _is_chat(example["prompt"]) == _is_chat(example["chosen"]):
        return example
    return extract_prompt(example)


def unpair_preference_dataset(dataset: Any, num_proc: int | None = None) -> Any:
    """A row with `completion` and `label` for each answer: true for the chosen one. Takes a dictionary of sets, too."""
    return dataset.map(_unpaired, batched=True, remove_columns=["chosen", "rejected"], num_proc=num_proc)


def maybe_unpair_preference_dataset(dataset: Any, num_proc: int | None = None) -> Any:
    """The same for a set of pairs; another set as it is."""
    columns = dataset.column_names
    of_first = next(iter(columns.values())) if isinstance(columns, dict) else columns
    return unpair_preference_dataset(dataset, num_proc) if {"chosen", "rejected"} <= set(of_first) else dataset


def _unpaired(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    count = len(rows["chosen"])
    new = {"completion": [*rows["chosen"], *rows["rejected"]], "label": [True] * count + [False] * count}
    return new | {name: [*rows[name]] * 2 for name in rows if name not in ("chosen", "rejected")}
