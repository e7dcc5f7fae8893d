"""Reads the messages of a chat request into the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_step.sampling.endpoint.errors import refused

Message = dict[str, Any]
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Templates know no developer: it is the newer name of the system."""
KNOWN = frozenset(("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"))


class Conversation(NamedTuple):
    """What a chat template is given."""

    messages: list[Message]
    """contents are texts, and arguments of calls objects"""
    tools: list[dict[str, Any]]


def read_messages(given: Any) -> list[Message]:
    """The messages, checked.

    Raises:
        ApiError: 400 that names the message.
    """
    if not isinstance(given, list) or not given:
        raise refused("messages", "must be a list with at least one message")
    messages: list[Message] = []
    names: dict[Any, str] = {}  # of the calls so far, by id
    for i, message in enumerate(given):
        field = f"messages[{i}]"
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise refused(field, f"must be an object with a role: {', '.join(ROLES)}")
        for name, value in message.items():
            if name not in KNOWN and value not in (None, [], {}):
                raise refused(f"{field}.{name}", "is not known here, and may not be ignored; leave it out")
        read: Message = {
            **{name: message[name] for name in KNOWN if message.get(name) is not None},
            "role": ROLES[message["role"]],
            "content": _text(f"{field}.content", message.get("content")),
        }
        if read.pop("tool_calls", None):
            read["tool_calls"] = _calls(f"{field}.tool_calls", message["tool_calls"])
            names |= {call["id"]: call["function"]["name"] for call in read["tool_calls"]}
        if read["role"] == "tool" and read.get("tool_call_id") in names:
            read.setdefault("name", names[read["tool_call_id"]])  # some templates show it
        messages.append(read)
    return messages


def read_tools(given: Any) -> list[dict[str, Any]]:
    """The tools, checked.

    Raises:
        ApiError: 400 that names the tool.
    """
    if not isinstance(given, list):
        raise refused("tools", "must be a list")
    for i, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refused(f"tools[{i}]", "must be of the type function, with a function that has a name")
    return given


def same_turn(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two assistant messages are one turn: clients trim texts, write JSON anew and give ids of their own."""

    def said(message: Mapping[str, Any]) -> Any:
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
        return message["role"], message["content"].strip(), calls

    return bool(said(one) == said(other))


def continues(messages: Sequence[Message], earlier: Sequence[Message]) -> bool:
    """Whether `messages` are `earlier`, which ends with a turn of the model, and more."""
    count = len(earlier)
    return (
        len(messages) > count
        and list(messages[: count - 1]) == list(earlier[:-1])
        and same_turn(messages[count - 1], earlier[-1])
    )


def _text(field: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise refused(field, f"must be a text or a list of parts, got {content!r:.80}")
    for i, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise refused(f"{field}[{i}]", "only parts of the type text are possible")
    return "".join(part["text"] for part in content)


def _calls(field: str, given: Any) -> list[dict[str, Any]]:
    calls = []
    for i, call in enumerate(given if isinstance(given, list) else [given]):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise refused(f"{field}[{i}]", "must be an object with a function that has a name")
        arguments = function.get("arguments", "{}")
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments or "{}")
            except (ValueError, RecursionError) as error:
                raise refused(f"{field}[{i}].function.arguments", f"is not JSON: {error}") from error
        # templates write the arguments as JSON, and would write a text of JSON as a JSON string
        calls.append(
            {"id": call.get("id"), "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        )
    return calls
