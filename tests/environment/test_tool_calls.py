"""Parsing, escaping, and tools that run side by side with a time limit."""

from __future__ import annotations

import threading
import time
from functools import partial

import pytest

from tests.environment.environment_tools import Clock
from tests.limits import HANG
from trl_step.environment import side_by_side
from trl_step.environment.side_by_side import SideBySide
from trl_step.environment.tool_calls import (
    control_pattern,
    escape,
    find_tool_call,
    shorten,
    tool_replies,
    tools_by_name,
)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("Something <request><Tool1>Hello there!<call>", ("Tool1", "Hello there!")),
        ("<request>please <Tool1>a<call>", ("Tool1", "a")),
        ("<request><T>two\nlines > one <b><call>", ("T", "two\nlines > one <b>")),
        ("<request><T>a <b> c<call>", ("T", "a <b> c")),
        ("<request><T><call>", ("T", "")),
        ("<call><request><T>a<call>", ("T", "a")),
        ("<request><T>a<call> more <request><U>b<call>", ("T", "a")),
        ("<request><>a<call>", ("", "a")),
        ("<Tool1>Hello there!<call>", (None, None)),
        ("<request><Tool1>Hello there!", (None, None)),
        ("<request>|Tool2|Hello there!<call>", (None, None)),
        ("<request><T>a<request><U>b<call>", (None, None)),
        ("<request><request><T>a<call>", (None, None)),
        ("<>abcdefghijklm<>nopqrstuvwxyz<>", (None, None)),
        ("", (None, None)),
    ],
)
def test_parsing(text: str, want: tuple) -> None:
    assert find_tool_call(text, "<request>", "<call>") == want


def test_parsing_with_tokens_that_mean_something_in_a_pattern() -> None:
    assert find_tool_call("(ask)<T>a?[go]", "(ask)", "[go]") == ("T", "a?")


def test_tools_by_name() -> None:
    class Search:
        def __call__(self, query: str) -> str:
            return query

    def add(query: str) -> str:
        return query

    search = Search()
    assert tools_by_name([search, add, len]) == {"Search": search, "add": add, "len": len}
    assert tools_by_name({"x": add}) == {"x": add}
    assert tools_by_name(None) == {}
    with pytest.raises(ValueError, match="two tools are named 'Search'"):
        tools_by_name([search, Search()])
    with pytest.raises(ValueError, match="a lambda in a list of tools has no name"):
        tools_by_name([add, lambda text: text])
    with pytest.raises(TypeError, match="tool 'x' is a int"):
        tools_by_name({"x": 1})


def test_escape() -> None:
    control = control_pattern(["<call>", "</s>", "[SEP]", ""])
    assert escape("a<call>b</s>[SEP]<b>", control) == "a&lt;call>b&lt;/s>&#91;SEP]<b>"
    assert escape("<<call>call>", control) == "<&lt;call>call>"
    assert escape("plain <", control) == "plain <"
    assert escape("anything", control_pattern([])) == "anything"
    overlapping = control_pattern(["ab", "ba"])
    assert not overlapping.search(escape("abababa", overlapping))


@pytest.mark.parametrize(("most", "want"), [(10, "0123456789"), (9, "012345..."), (3, "..."), (2, ".."), (0, "")])
def test_shorten(most: int, want: str) -> None:
    assert shorten("0123456789", most) == want


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of the time limits."""
    clock = Clock()
    monkeypatch.setattr(side_by_side, "time", clock)
    return clock


def call_all(runner: SideBySide, tool, *queries: str) -> list[str]:
    return tool_replies(runner, [partial(tool, query) for query in queries])


def test_replies_keep_the_order_of_the_calls() -> None:
    def tool(query: str) -> str:
        time.sleep(0.05 / (int(query) + 1))
        return query * 2

    assert call_all(SideBySide(), tool, "0", "1", "2", "3") == ["00", "11", "22", "33"]
    assert tool_replies(SideBySide(), []) == []


def test_calls_run_side_by_side() -> None:
    barrier = threading.Barrier(4, timeout=HANG)
    assert call_all(SideBySide(workers=4), lambda _: barrier.wait() >= 0, "a", "b", "c", "d") == ["True"] * 4


def test_no_more_calls_than_workers_at_once() -> None:
    lock, running, most, two = threading.Lock(), [0], [0], threading.Event()

    def tool(query: str) -> str:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
            if running[0] == 2:
                two.set()
        two.wait(HANG)
        time.sleep(0.01)
        with lock:
            running[0] -= 1
        return query

    assert call_all(SideBySide(workers=2), tool, *"abcdefg") == list("abcdefg")
    assert most[0] == 2


def test_late_calls_give_their_place_to_the_next(clock: Clock) -> None:
    """One worker: the clock of a call starts with the call, not while it waits for a place."""
    release = threading.Event()

    def tool(query: str) -> str:
        if query == "hang":
            clock.go_on(0.1)
            release.wait(HANG)
        return query

    replies = call_all(SideBySide(workers=1, timeout=0.1), tool, "a", "hang", "b", "hang", "c")
    release.set()
    late = "Tool error: no reply within 0.1 seconds"
    assert replies == ["a", late, "b", late, "c"]


def test_a_late_reply_is_not_taken_for_another(clock: Clock) -> None:
    first_done, second_started = threading.Event(), threading.Event()

    def tool(query: str) -> str:
        if query == "slow":
            clock.go_on(0.1)
            second_started.wait(HANG)
            first_done.set()
            return "too late"
        second_started.set()
        first_done.wait(HANG)
        time.sleep(0.02)
        return query

    assert call_all(SideBySide(workers=1, timeout=0.1), tool, "slow", "next")[1] == "next"


def test_calls_that_hang_are_bounded(monkeypatch, clock: Clock) -> None:
    monkeypatch.setattr(side_by_side, "MOST_ABANDONED", 2)
    release, started = threading.Event(), []

    def tool(query: str) -> str:
        started.append(query)
        if not release.is_set():
            clock.go_on(0.05)
        release.wait(HANG)
        return query

    runner = SideBySide(workers=1, timeout=0.05)
    replies = call_all(runner, tool, "a", "b", "c")
    assert started == ["a", "b"]
    assert "2 earlier calls hang" in replies[2]
    release.set()
    for thread in runner._abandoned:
        thread.join(HANG)
    assert call_all(runner, tool, "d") == ["d"]


def test_workers_zero_stays_in_the_callers_thread() -> None:
    thread = threading.get_ident()
    assert call_all(SideBySide(workers=0), lambda _: threading.get_ident() == thread, "a", "b") == ["True", "True"]
    assert call_all(SideBySide(workers=1), lambda _: threading.get_ident() == thread, "a") == ["False"]


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "want"),
    [
        (ValueError("bad query"), "Tool error: bad query"),
        (KeyError(), "Tool error: KeyError"),
        (SystemExit(3), "Tool error: 3"),
        (Mute(), "Tool error: Mute"),
    ],
)
def test_whatever_a_tool_raises_is_a_reply(workers: int, error: BaseException, want: str) -> None:
    def tool(query: str) -> str:
        if query == "bad":
            raise error
        return query

    assert call_all(SideBySide(workers), tool, "a", "bad", "b") == ["a", want, "b"]


def test_even_an_interrupt_inside_a_tool_is_a_reply() -> None:
    def tool(query: str) -> str:
        raise KeyboardInterrupt("stop")

    assert call_all(SideBySide(timeout=HANG), tool, "a") == ["Tool error: stop"]


def test_a_tool_sees_the_callers_context() -> None:
    import contextvars

    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    assert call_all(SideBySide(), lambda _: variable.get(), "a") == ["set"]


@pytest.mark.parametrize(("workers", "timeout"), [(-1, 1.0), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_bad_settings_are_named(workers: int, timeout: float) -> None:
    with pytest.raises(ValueError, match=r"workers=-1|timeout="):
        SideBySide(workers, timeout)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_strict_run_raises_what_a_tool_raised(workers: int) -> None:
    runner = SideBySide(workers)
    with pytest.raises(KeyError, match="boom"):
        tool_replies(runner, [lambda: "well", lambda: {}["boom"]], strict=True)
    assert tool_replies(runner, [lambda: "well"], strict=True) == ["well"]
