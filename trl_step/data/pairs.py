"""Prompts with a chosen and a rejected answer, as token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from trl_step.data.collators import pad_to_length
from trl_step.data.special_tokens import PARTS, tokens_of

Row = dict[str, Any]
SIDES = ("chosen", "rejected")


def text_of(value: Any, tokenizer: Any) -> str:
    """A text unchanged; a list of messages rendered with the tokenizer's chat template."""
    return value if isinstance(value, str) else tokenizer.apply_chat_template(value, tokenize=False)


def tokenize_pair_for_rewards(feature: Mapping[str, Any], tokenizer: Any, max_length: int) -> Row:
    """`chosen` and `rejected` (after `prompt`, if there is one) as `input_ids_chosen`, `attention_mask_chosen`, ...

    Args:
        feature: texts, or lists of messages.
        tokenizer: tokenizes both, with its special tokens.
        max_length: maximum number of tokens; the tokenizer's `truncation_side` is cut.
    """
    prompt = feature.get("prompt", "")
    row: Row = {}
    for side in SIDES:
        text = text_of(feature[side], tokenizer) if not prompt else _joined(prompt, feature[side], tokenizer)
        tokens = tokens_of(tokenizer, [text], max_length)
        row |= {f"{part}_{side}": tokens[part][0] for part in PARTS}
    return row


def _joined(prompt: Any, answer: Any, tokenizer: Any) -> str:
    return prompt + answer if isinstance(prompt, str) else text_of([*prompt, *answer], tokenizer)


def tokenize_answer(tokenizer: Any, prompt: str, answer: str) -> Row:
    """The tokens of `prompt + answer`, split where the answer begins.

    If the tokenizer merges the prompt's end with the answer's beginning, the merged token belongs to the answer.

    Returns:
        `prompt_input_ids`, `prompt_attention_mask` and the answer's `input_ids`, `attention_mask`: lists of int,
        without begin or end tokens.
    """
    whole = tokenizer(prompt + answer, add_special_tokens=False)
    alone = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = len(alone)
    if alone != whole["input_ids"][:start]:
        start -= 1
    return {
        **{f"prompt_{part}": list(whole[part][:start]) for part in PARTS},
        **{part: list(whole[part][start:]) for part in PARTS},
    }


def tokenize_preference(
    feature: Mapping[str, Any],
    tokenizer: Any,
    split: Callable[[str, str], Row],
    max_length: int,
    max_prompt_length: int,
    truncation_mode: str,
    label_pad_token_id: int,
) -> Row:
    """A row with `prompt`, `chosen`, `rejected` for a decoder: both whole texts with labels, and the prompt alone.

    A text that is too long first loses tokens of its prompt, then the end of its answer.

    Args:
        feature: the texts.
        tokenizer: its begin token is put before the prompt, its end token after the answers.
        split: from prompt and answer to `tokenize_answer`'s result.
        max_length: maximum number of tokens of prompt and answer together.
        max_prompt_length: tokens of the prompt that are kept if `max_length` is exceeded.
        truncation_mode: "keep_end" or "keep_start", for the prompt.
        label_pad_token_id: the labels of the prompt.

    Returns:
        `chosen_input_ids`, `chosen_attention_mask`, `chosen_labels`, the same of `rejected`, `prompt_input_ids`,
        `prompt_attention_mask`: lists of int.

    Raises:
        ValueError: the prompt's tokens before the two answers differ by more than one, the mode is unknown, there is no
            end token, or there is no room for an answer.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end token to put after the answers: set tokenizer.eos_token")
    prompt = tokenizer(feature["prompt"], add_special_tokens=False)
    parts = {side: split(feature["prompt"], feature[side]) for side in SIDES}
    lengths = [len(parts[side]["prompt_input_ids"]) for side in SIDES]
    _check_same_prompt(*(parts[side]["prompt_input_ids"] for side in SIDES))
    parts["prompt"] = {f"prompt_{part}": list(prompt[part][: min(lengths)]) for part in PARTS}

    for tokens in parts.values():
        _put_in_front(tokens, tokenizer.bos_token_id)
    for side in SIDES:
        # differs from v0.7: an answer of a chat template that ends with the token gets no second one
        if parts[side]["input_ids"][-1:] != [tokenizer.eos_token_id]:
            parts[side]["input_ids"].append(tokenizer.eos_token_id)
            parts[side]["attention_mask"].append(1)

    longest = max(len(parts[side]["input_ids"]) for side in SIDES)
    for tokens in parts.values():
        if len(tokens["prompt_input_ids"]) + longest > max_length:
            for part in PARTS:
                tokens[f"prompt_{part}"] = _shortened(tokens[f"prompt_{part}"], max_prompt_length, truncation_mode)
    for side in SIDES:
        # differs from v0.7: there max_length - max_prompt_length, also after a shorter prompt
        room = max_length - len(parts[side]["prompt_input_ids"])
        if len(parts[side]["prompt_input_ids"]) + longest > max_length:
            if room < 1:
                raise ValueError(
                    f"max_prompt_length={max_prompt_length} leaves an answer no room within max_length={max_length}"
                )
            for part in PARTS:
                parts[side][part] = parts[side][part][:room]

    row = dict(parts["prompt"])
    for side in SIDES:
        tokens = parts[side]
        row |= {f"{side}_{part}": tokens[f"prompt_{part}"] + tokens[part] for part in PARTS}
        row[f"{side}_labels"] = [label_pad_token_id] * len(tokens["prompt_input_ids"]) + tokens["input_ids"]
    return row


def tokenize_preference_for_encoder(
    feature: Mapping[str, Any], tokenizer: Any, max_prompt_length: int | None, max_target_length: int | None, model: Any
) -> Row:
    """A row with `prompt`, `chosen`, `rejected` for an encoder-decoder: each separately, with its special tokens.

    Returns:
        `prompt_input_ids`, `prompt_attention_mask`, `chosen_labels`, `rejected_labels`; with a `model` also
        `chosen_decoder_input_ids` and `rejected_decoder_input_ids`.
    """
    prompt = tokens_of(tokenizer, [feature["prompt"]], max_prompt_length)
    row: Row = {f"prompt_{part}": prompt[part][0] for part in PARTS}
    for side in SIDES:
        labels = tokens_of(tokenizer, [feature[side]], max_target_length)["input_ids"][0]
        row[f"{side}_labels"] = labels
        if model is not None:
            shifted = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([labels]))
            row[f"{side}_decoder_input_ids"] = shifted[0].tolist()
    return row


def chosen_above_rejected(
    batch: Mapping[str, Any], is_encoder_decoder: bool, label_pad_token_id: int, padding_value: int
) -> dict[str, torch.Tensor]:
    """Both answers of a padded batch as one: `concatenated_input_ids`, `_attention_mask`, `_labels`, int64 [2B, T].

    An encoder gets the prompts twice. Other columns that begin with `chosen_` are concatenated the same way.
    """
    fillings = {"_attention_mask": 0, "_labels": label_pad_token_id, "_input_ids": padding_value}
    of_length = "labels" if is_encoder_decoder else "input_ids"
    length = max(batch[f"{side}_{of_length}"].shape[1] for side in SIDES)
    joined = {}
    for name, chosen in batch.items():
        filling = next((value for ending, value in fillings.items() if name.endswith(ending)), None)
        if not name.startswith("chosen_") or filling is None:
            continue
        part = name.removeprefix("chosen_")
        sides = (chosen, batch[f"rejected_{part}"])
        joined[f"concatenated_{part}"] = torch.cat([pad_to_length(side, length, filling) for side in sides])
    if is_encoder_decoder:
        joined |= {f"concatenated_{part}": batch[f"prompt_{part}"].repeat(2, 1) for part in PARTS}
    return joined


def _check_same_prompt(chosen: list[int], rejected: list[int]) -> None:
    differing = sum(a != b for a, b in zip(chosen, rejected, strict=False))
    if differing > 1 or abs(len(chosen) - len(rejected)) > 1:
        raise ValueError(
            "the prompt's tokens before the chosen and before the rejected answer differ by more than the last one: "
            "begin the answers with a space or a line break, or end the prompt with one"
        )


def _put_in_front(tokens: Row, token_id: int | None) -> None:
    """The begin token before the prompt, if the tokenizer has one and the text does not begin with it."""
    if token_id is not None and tokens["prompt_input_ids"][:1] != [token_id]:
        tokens["prompt_input_ids"] = [token_id, *tokens["prompt_input_ids"]]
        tokens["prompt_attention_mask"] = [1, *tokens["prompt_attention_mask"]]


def _shortened(tokens: list[int], length: int, mode: str) -> list[int]:
    if mode == "keep_start":
        return tokens[:length]
    if mode == "keep_end":
        return tokens[-length:] if length else []
    raise ValueError(f"truncation_mode must be 'keep_end' or 'keep_start', not {mode!r}")
