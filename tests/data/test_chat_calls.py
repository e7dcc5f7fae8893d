"""Reading calls out of a turn."""

from __future__ import annotations

import pytest

from trl_step.data.chat_calls import ParsedCall, before_calls, parse_tool_calls

ADD = ParsedCall("add", {"first": 3})


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "add", "arguments": {"first": 3}}\n</tool_call>',
        'Let me see. <tool_call>{"arguments": {"first": 3}, "name": "add"}</tool_call> Wait.',
        '<tool_call>{"type": "function", "function": {"name": "add", "arguments": {"first": 3}}}</tool_call>',
        '<tool_call>{"name": "add", "arguments": "{\\"first\\": 3}"}</tool_call>',
        '[TOOL_CALLS][{"name": "add", "arguments": {"first": 3}, "id": "call00000"}]',
        'Yes [TOOL_CALLS] [{"name": "add", "arguments": {"first": 3}}]',
        '{"name": "add", "parameters": {"first": 3}}',
        ' \n{"type": "function", "name": "add", "parameters": {"first": 3}}\n',
        '<|python_tag|>{"name": "add", "parameters": {"first": 3}}',
        '[{"name": "add", "arguments": {"first": 3}}]',
        '<think>{"name": "no"} <tool_call>{}</tool_call></think>{"name": "add", "parameters": {"first": 3}}',
        'thinking of <tool_call></think><tool_call>{"name": "add", "arguments": {"first": 3}}</tool_call>',
    ],
)
def test_every_form_of_a_call(text: str) -> None:
    assert parse_tool_calls(text) == [ADD]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"add","arguments":{"first":3}}</tool_call>\n<tool_call>{"name":"now"}</tool_call>',
        '[TOOL_CALLS][{"name":"add","arguments":{"first":3}}, {"name":"now"}]',
        '{"name":"add","parameters":{"first":3}}; {"name":"now", "parameters": {}}',
        '{"name":"add","parameters":{"first":3}}\n{"name":"now"};',
        '<tool_call>[{"name":"add","arguments":{"first":3}}, {"name":"now","arguments":""}]</tool_call>',
    ],
)
def test_several(text: str) -> None:
    assert parse_tool_calls(text) == [ADD, ParsedCall("now")]


@pytest.mark.parametrize(
    "text",
    ["", "The answer is 7.", '{"answer": 7}', "{7}", "[1, 2]", '<think><tool_call>{"name": "add"}</tool_call>',
     "I could call add(3).", 'an object: {"name": "add"}'],
)  # fmt: skip
def test_turns_without_a_call(text: str) -> None:
    assert parse_tool_calls(text) == []


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('<tool_call>{"name": "add"', ["not closed"]),
        ('<tool_call><tool_call>{"name": "add"}</tool_call>', ["not closed", None]),
        ('<tool_call>{"name": "add"</tool_call><tool_call>{"name": "add"}</tool_call>', ["not valid JSON", None]),
        ('{"name": "add", "parameters": {', ["not valid JSON"]),
        ('{"name": "add"} and so on', [None, "not valid JSON"]),
        ("<|python_tag|>print(3)", ["not valid JSON"]),
        ("[TOOL_CALLS]", ["empty"]),
        ('[TOOL_CALLS][{"name": 3}]', ['with "name"']),
        ('{"name": "add", "arguments": 3}', ["must be a JSON object"]),
    ],
)
def test_what_is_wrong_is_said(text: str, problems: list[str | None]) -> None:
    calls = parse_tool_calls(text)
    assert len(calls) == len(problems)
    for call, problem in zip(calls, problems, strict=True):
        assert (call.problem is None) == (problem is None)
        assert problem is None or problem in str(call.problem)


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ('Let me see. <tool_call>{"name": "add"}</tool_call> Wait.', "Let me see. "),
        ('hm <tool_call></think>\nSo: <tool_call>{"name": "add"}</tool_call>', "hm <tool_call></think>\nSo: "),
        ('<think>[TOOL_CALLS]</think>Yes [TOOL_CALLS][{"name": "add"}]', "<think>[TOOL_CALLS]</think>Yes "),
        ('<think>so</think>\n{"name": "add", "parameters": {}}', "<think>so</think>\n"),
        ('<|python_tag|>{"name": "add"}', ""),
    ],
)
def test_what_is_said_before_the_calls(text: str, before: str) -> None:
    assert parse_tool_calls(text)
    assert before_calls(text) == before
