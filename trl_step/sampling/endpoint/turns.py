"""Reads an answer of the model: its text, and the calls in it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from trl_step.data.chat_calls import before_calls, parse_tool_calls
from trl_step.sampling.endpoint.messages import Message


class Turn(NamedTuple):
    """What the client is given of an answer."""

    content: str
    """without end token, stop string and special tokens; with calls, what was said before them"""
    calls: list[dict[str, Any]]
    """in OpenAI's form, with the arguments as JSON text"""
    finish_reason: str
    """stop, length or tool_calls"""
    ended_by_token: bool
    """whether the last token is an end token"""

    def message(self) -> Message:
        """The turn as a chat template takes it."""
        message: Message = {"role": "assistant", "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": json.loads(call["function"]["arguments"])}}
                for call in self.calls
            ]
        return message


def read_turn(tokenizer: Any, tokens: torch.Tensor, ended: bool, stop: Sequence[str], with_calls: bool) -> Turn:
    """What the model said in `tokens` [R] int64.

    Args:
        ended: whether the answer came to its end
        stop: the strings that end an answer
        with_calls: parse tool calls. If one of them is wrong, the whole turn is text: the client sees what was said
    """
    whole = decode(tokenizer, tokens)
    by_token = ended and _cut(whole, stop) == whole
    spoken = _cut(decode(tokenizer, tokens[:-1]) if by_token else whole, stop)
    content = _cut(decode(tokenizer, tokens, skip_special_tokens=True), stop)
    parsed = parse_tool_calls(spoken) if with_calls else []
    calls: list[dict[str, Any]] = []
    if parsed and all(call.problem is None for call in parsed):
        content = before_calls(spoken).strip()
        calls = [
            {
                "id": secrets.token_hex(5)[:9],  # nine letters and digits, as some templates require
                "type": "function",
                "function": {"name": _printable(call.name), "arguments": json.dumps(call.arguments)},
            }
            for call in parsed
        ]
    reason = "length" if not ended else "tool_calls" if calls else "stop"
    return Turn(content, calls, reason, by_token)


def decode(tokenizer: Any, tokens: torch.Tensor, skip_special_tokens: bool = False) -> str:
    """The text of `tokens` [R] int64, spaces as they are."""
    return tokenizer.decode(
        tokens.tolist(), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
    )


def _cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first of the `stop` strings."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def _printable(name: str) -> str:
    """`name` with question marks for halves of surrogate pairs, which have no place in UTF-8."""
    return name.encode("utf-8", "replace").decode("utf-8")
