"""Parses tool calls in the model's text, runs tools with a time limit, and escapes their replies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from trl_step.environment.side_by_side import SideBySide

Tool = Callable[..., Any]
ToolCall = Callable[[], Any]
"""One call that the model requested: a tool with its arguments."""


def tools_by_name(tools: Mapping[str, Tool] | Sequence[Tool] | None) -> dict[str, Tool]:
    """A dictionary of tools; those of a list are named by their class, plain functions by their own name.

    Raises:
        TypeError: a tool cannot be called.
        ValueError: two tools of a list have the same name, or one is a lambda.
    """
    if isinstance(tools, Mapping):
        named = dict(tools)
    else:
        named = {}
        for tool in tools or ():
            # differs from v0.7: there every plain function was named "function", and the last one won
            name = tool.__name__ if inspect.isroutine(tool) or inspect.isclass(tool) else type(tool).__name__
            if name == "<lambda>":
                raise ValueError("a lambda in a list of tools has no name to call it by; give a dictionary")
            if name in named:
                raise ValueError(f"two tools are named {name!r}; give a dictionary with a name for each")
            named[name] = tool
    for name, tool in named.items():
        if not callable(tool):
            raise TypeError(f"tool {name!r} is a {type(tool).__name__}; give a function or another callable")
    return named


def find_tool_call(text: str, request_token: str, call_token: str) -> tuple[str | None, str | None]:
    """(tool name, query) of the first `<request><name>query<call>` in `text`; (None, None) if there is none.

    A request inside a request is not a call: it is ambiguous which of the two is meant.
    """
    _, opened, rest = text.partition(request_token)
    body, closed, _ = rest.partition(call_token)
    if not opened or not closed or request_token in body:
        return None, None
    name = re.search(r"<([^>\n]*)>", body)
    if name is None:
        return None, None
    return name.group(1), body[name.end() :]


# --- replies ---------------------------------------------------------------------------------------------------


def control_pattern(control_tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches each of the non-empty `control_tokens`."""
    tokens = sorted({token for token in control_tokens if token})
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def special_tokens(tokenizer: Any) -> set[str]:
    """The texts of all special tokens that the tokenizer knows."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)


HALF_PAIRS = re.compile("[\ud800-\udfff]")
"""Halves of surrogate pairs, such as `"\\ud800"` in a model's JSON, which no tokenizer accepts."""


def whole(text: str) -> str:
    """`text` with the replacement character for halves of surrogate pairs."""
    return HALF_PAIRS.sub("\N{REPLACEMENT CHARACTER}", text)


def escape(text: str, control: re.Pattern[str]) -> str:
    """`text` without control tokens: the first character of each is written as an HTML entity (`&lt;submit>`).

    Halves of surrogate pairs become the replacement character.
    """
    text, previous = whole(text), None
    for _ in range(8):  # one pass is enough unless control tokens overlap
        if text == previous:
            break
        previous, text = text, control.sub(_as_entity, text)
    return text


def _as_entity(match: re.Match[str]) -> str:
    first, rest = match.group()[0], match.group()[1:]
    return ("&lt;" if first == "<" else f"&#{ord(first)};") + rest


def shorten(text: str, most_characters: int) -> str:
    """At most `most_characters` of `text`, with an ellipsis if it is cut."""
    if len(text) <= most_characters:
        return text
    return text[: max(0, most_characters - 3)] + "..."[: max(0, most_characters)]


# --- running ---------------------------------------------------------------------------------------------------


def tool_replies(runner: SideBySide, calls: Sequence[ToolCall], strict: bool = False) -> list[str]:
    """The reply to each call, in order. Whatever a tool raises or returns becomes a string; with `strict` it raises."""
    outcomes = runner.run([lambda call=call: str(call()) for call in calls])  # type: ignore[misc]
    for outcome in outcomes:
        if strict and outcome.exception is not None:
            raise outcome.exception
    return [f"Tool error: {error}" if error is not None else value for value, error, _ in outcomes]
