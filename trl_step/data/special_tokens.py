"""Texts to tokens, with the tokenizer's begin and end tokens once, also where a chat template has written them."""

from __future__ import annotations

from typing import Any

PARTS = ("input_ids", "attention_mask")


def tokenizer_of(tokenizer: Any, processing_class: Any) -> Any:
    """The tokenizer, given under its name of transformers 4 or 5.

    Raises:
        TypeError: both are given, and are not the same.
    """
    if tokenizer is not None and processing_class is not None and tokenizer is not processing_class:
        raise TypeError("tokenizer and processing_class are two names of one argument: give one of them")
    return processing_class if tokenizer is None else tokenizer


def tokens_of(
    tokenizer: Any, texts: list[str], max_length: int | None = None, add_special_tokens: bool = True
) -> dict[str, list[list[int]]]:
    """`input_ids` and `attention_mask` of each text, at most `max_length` tokens.

    A begin or end token that the text has itself is not added a second time.

    Args:
        tokenizer: its `truncation_side` is cut.
        texts: the texts; there may be none.
        max_length: None: no limit.
        add_special_tokens: let the tokenizer add its own.
    """
    limit = {} if max_length is None else {"truncation": True, "max_length": max_length}
    if not texts:
        return {part: [] for part in PARTS}
    tokens = tokenizer(texts, add_special_tokens=add_special_tokens, **limit)
    rows: dict[str, list[list[int]]] = {part: list(tokens[part]) for part in PARTS}
    before, after = added_tokens(tokenizer) if add_special_tokens else ([], [])
    for index, text in enumerate(texts):
        # the texts are compared first: most have none of them
        if not (_has(tokenizer, before, text, at_end=False) or _has(tokenizer, after, text, at_end=True)):
            continue
        ids = once(tokenizer(text, add_special_tokens=False)["input_ids"], before, after)
        # differs from v0.7: there the tokenizer's own came on top of those of the text
        rows["input_ids"][index] = _cut(ids, before, after, max_length, tokenizer.truncation_side)
        rows["attention_mask"][index] = [1] * len(rows["input_ids"][index])
    return rows


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((at for at in range(len(whole) - len(word) + 1) if whole[at : at + len(word)] == word), 0)
    return list(whole[:start]), list(whole[start + len(word) :])


def once(ids: list[int], before: list[int], after: list[int]) -> list[int]:
    """`ids` between `before` and `after`, of which those that it has already are not put there again."""
    starts = before if ids[: len(before)] != before else []
    ends = after if not after or ids[-len(after) :] != after else []
    return [*starts, *ids, *ends]


def _cut(ids: list[int], before: list[int], after: list[int], max_length: int | None, side: str) -> list[int]:
    """At most `max_length` ids, from between the special ones, as a tokenizer cuts."""
    if max_length is None or len(ids) <= max_length:
        return ids
    body = ids[len(before) : len(ids) - len(after)]
    room = max(max_length - len(before) - len(after), 0)
    kept = body[:room] if side == "right" else body[len(body) - room :]
    return [*before, *kept, *after]


def _has(tokenizer: Any, special: list[int], text: str, at_end: bool) -> bool:
    if not special:
        return False
    token = tokenizer.convert_ids_to_tokens(special[-1] if at_end else special[0])
    return text.rstrip().endswith(token) if at_end else text.lstrip().startswith(token)
