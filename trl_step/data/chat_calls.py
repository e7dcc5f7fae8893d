"""Parses the tool calls in a chat model's turn, in the JSON formats that today's chat templates use."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

OPEN, CLOSE = "<tool_call>", "</tool_call>"
LIST_MARK = "[TOOL_CALLS]"
BARE_MARK = "<|python_tag|>"
CALL_MARKS = (OPEN, CLOSE, LIST_MARK, BARE_MARK)
"""Marks that open or close calls in the formats below."""

_BARE_CALL = re.compile(r'[\[\s]*\{\s*"(type|name|function|arguments|parameters)"\s*:')


class ParsedCall(NamedTuple):
    """A call, or in `problem` the reason why it cannot be made."""

    name: str = ""
    arguments: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    problem: str | None = None


def parse_tool_calls(text: str) -> list[ParsedCall]:
    """The calls in a model's turn, in order; an empty list for a turn without a call.

    Three formats are parsed: `<tool_call>{...}</tool_call>`, any number of them, with text around (Hermes, Qwen);
    `[TOOL_CALLS][{...}, ...]` (Mistral); and a turn that is nothing but JSON objects, also after `<|python_tag|>`,
    separated by white space or semicolons, or in a list (Llama 3). An object has a `name`, and `arguments` or
    `parameters` which are an object, or its JSON text. Anything in `<think>...</think>` is not a call.

    Invalid JSON, a call that is never closed and a call inside a call give a `ParsedCall` that says so.
    """
    spoken = _spoken(text)
    if OPEN in spoken:
        return [call for body in spoken.split(OPEN)[1:] for call in _tagged(body)]
    if LIST_MARK in spoken:
        return _objects(spoken.partition(LIST_MARK)[2])
    if BARE_MARK in spoken:
        return _objects(spoken.partition(BARE_MARK)[2])
    return _objects(spoken) if _BARE_CALL.match(spoken) else []


def before_calls(text: str) -> str:
    """What a turn with calls says before the first of them, thoughts included."""
    spoken = _spoken(text)
    mark = next((mark for mark in (OPEN, LIST_MARK, BARE_MARK) if mark in spoken), None)
    begin = len(spoken) - len(spoken.lstrip()) if mark is None else spoken.index(mark)
    return text[:begin]


def _spoken(text: str) -> str:
    """`text` with a space for each character of the thoughts, so that places stay the same."""
    spoken = re.sub(r"<think>.*?(</think>|\Z)", lambda thoughts: " " * len(thoughts[0]), text, flags=re.DOTALL)
    if "</think>" in spoken:  # for templates that open the thoughts themselves
        _, _, after = spoken.rpartition("</think>")
        spoken = " " * (len(spoken) - len(after)) + after
    return spoken


def _tagged(body: str) -> list[ParsedCall]:
    """The calls in the text between one opening tag and the next."""
    inside, closed, _ = body.partition(CLOSE)
    if not closed:
        return [ParsedCall(problem=f"a {OPEN} is not closed before the next one or the end of the turn")]
    return _objects(inside)


def _objects(text: str) -> list[ParsedCall]:
    """Calls from JSON objects one after the other, or in a list."""
    calls: list[ParsedCall] = []
    decoder, position = json.JSONDecoder(), 0
    while rest := text[position:].lstrip(" \t\r\n;"):
        position = len(text) - len(rest)
        try:
            value, length = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            return [*calls, ParsedCall(problem=f"a tool call is not valid JSON: {error}")]
        position += length
        calls += [_call(item) for item in (value if isinstance(value, list) else [value])]
    return calls or [ParsedCall(problem="a tool call is empty")]


def _call(value: Any) -> ParsedCall:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ParsedCall(problem='a tool call must be a JSON object with "name" and "arguments"')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            return ParsedCall(problem=f"the arguments of {value['name']} are not valid JSON: {error}")
    if not isinstance(arguments, dict):
        return ParsedCall(problem=f"the arguments of {value['name']} must be a JSON object")
    return ParsedCall(value["name"], arguments)
