"""Row F3: tools are explicit callables, and each call has a time limit."""

from __future__ import annotations

import inspect
import threading

import pytest

from tests.environment.environment_tools import environment
from tests.limits import HANG
from trl_step.environment import TextEnvironment


def test_a_tool_that_hangs_is_answered_and_the_episode_goes_on() -> None:
    """By the machine's own clock, which the other tests of time limits do without: calls "a" and "c" have 2 seconds."""
    release = threading.Event()

    def tool(query: str) -> str:
        if query == "b":
            release.wait(HANG)
        return query

    env = environment(
        lambda text: "<submit>" if "<response>" in text else f"<request><tool>{text[-1]}<call>",
        tools={"tool": tool},
        tool_timeout=2.0,
    )
    *_, histories = env.run(["a", "b", "c"])
    release.set()
    assert [history.text.split("<call>")[1] for history in histories] == [
        "a<response><submit>",
        "Tool error: no reply within 2 seconds<response><submit>",
        "c<response><submit>",
    ]
    assert all(history.completed for history in histories)


def test_there_is_a_limit_unless_it_is_taken_off() -> None:
    assert inspect.signature(TextEnvironment).parameters["tool_timeout"].default == 60.0


def test_only_the_tools_that_were_given_are_called() -> None:
    """Names of builtins, modules or methods are not looked up anywhere."""
    for name in ("print", "eval", "__import__", "os.system", "echo.__class__", "run"):
        env = environment(lambda text, name=name: "<submit>" if "<resp" in text else f"<request><{name}>1<call>")
        assert f"Unknown tool {name}.<response>" in env.run(["t"])[4][0].text
    with pytest.raises(TypeError, match="tool 'echo' is a str"):
        environment(lambda text: "", tools={"echo": "print"})
