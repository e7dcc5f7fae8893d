"""Reading a tool call out of the model's text, running tools with a time limit, and making their replies harmless."""

from __future__ import annotations

import contextvars
import inspect
import math
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MOST_ABANDONED = 64
"""Tool calls that ran out of time and still run, before no further call is started. A thread cannot be killed."""

Tool = Callable[[str], Any]


class ToolCall(NamedTuple):
    """One call that the model asked for."""

    tool: Tool
    query: str


def tools_by_name(tools: Mapping[str, Tool] | Sequence[Tool] | None) -> dict[str, Tool]:
    """A dictionary of tools; those of a list are named by their class, plain functions by themselves.

    Raises:
        TypeError: a tool cannot be called.
        ValueError: two tools of a list have the same name.
    """
    if isinstance(tools, Mapping):
        named = dict(tools)
    else:
        named = {}
        for tool in tools or ():
            # differs from v0.7: there every plain function was named "function", and the last one won
            name = tool.__name__ if inspect.isroutine(tool) or inspect.isclass(tool) else type(tool).__name__
            if name in named:
                raise ValueError(f"two tools are named {name!r}; give a dictionary with a name for each")
            named[name] = tool
    for name, tool in named.items():
        if not callable(tool):
            raise TypeError(f"tool {name!r} is a {type(tool).__name__}; a tool is called with the query string")
    return named


def find_tool_call(text: str, request_token: str, call_token: str) -> tuple[str | None, str | None]:
    """(tool name, query) of the first `<request><name>query<call>` in `text`; (None, None) if there is none.

    A request inside of a request is no call: which of the two is meant cannot be known.
    """
    _, opened, behind = text.partition(request_token)
    body, closed, _ = behind.partition(call_token)
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


def escape(text: str, control: re.Pattern[str]) -> str:
    """`text` without control tokens: the first character of each is written as an HTML entity (`&lt;submit>`)."""
    previous = None
    for _ in range(8):  # one round is enough unless control tokens overlap each other
        if text == previous:
            break
        previous, text = text, control.sub(_as_entity, text)
    return text


def _as_entity(match: re.Match[str]) -> str:
    first, rest = match.group()[0], match.group()[1:]
    return ("&lt;" if first == "<" else f"&#{ord(first)};") + rest


def shorten(text: str, most_characters: int) -> str:
    """At most `most_characters` of `text`, with an ellipsis where something is left out."""
    if len(text) <= most_characters:
        return text
    return text[: max(0, most_characters - 3)] + "..."[: max(0, most_characters)]


# --- running ---------------------------------------------------------------------------------------------------


class ToolRunner:
    """Runs the tool calls of one turn side by side.

    Args:
        workers: calls that run at the same time; 0 runs them one by one in the caller's thread, without a time
            limit (for tools that may only be used from the thread that made them).
        timeout: seconds that one call may take from its own start; None waits for ever.

    A call that runs out of time is answered and left behind: Python cannot stop a thread. It gives its place to the
    next call at once. Run what may hang or do harm in a process of its own.
    """

    def __init__(self, workers: int = 16, timeout: float | None = 60.0) -> None:
        if workers < 0:
            raise ValueError(f"tool_workers={workers} must not be negative")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"tool_timeout={timeout} must be a positive number of seconds, or None")
        self.workers = workers
        self.timeout = timeout
        self._abandoned: list[threading.Thread] = []

    def run(self, calls: Sequence[ToolCall]) -> list[str]:
        """The reply to each call, in order. Whatever a tool raises or returns becomes a string."""
        if self.workers == 0:
            return [reply_of(call) for call in calls]
        replies: dict[int, str] = {}
        waiting = deque(enumerate(calls))
        running: dict[int, tuple[threading.Thread, float]] = {}
        finished: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        while waiting or running:
            while waiting and len(running) < self.workers:
                i, call = waiting.popleft()
                if self._still_hanging() >= MOST_ABANDONED:
                    replies[i] = f"Tool error: {MOST_ABANDONED} earlier calls hang, no further call is started"
                else:
                    running[i] = (_start(i, call, finished), time.monotonic() + (self.timeout or math.inf))
            for i, reply in self._next_replies(running, finished):
                replies[i] = reply
                del running[i]
        return [replies[i] for i in range(len(calls))]

    def _next_replies(
        self, running: Mapping[int, tuple[threading.Thread, float]], finished: queue.SimpleQueue[tuple[int, str]]
    ) -> list[tuple[int, str]]:
        """Wait until a call is done or out of time."""
        if not running:
            return []
        patience = min(deadline for _, deadline in running.values()) - time.monotonic()
        try:
            i, reply = finished.get(timeout=min(max(0.0, patience), threading.TIMEOUT_MAX))
            return [(i, reply)] if i in running else []  # else: late, already answered
        except queue.Empty:
            now = time.monotonic()
            late = [i for i, (_, deadline) in running.items() if deadline <= now]
            self._abandoned += [running[i][0] for i in late]
            return [(i, f"Tool error: no reply within {self.timeout:g} seconds") for i in late]

    def _still_hanging(self) -> int:
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned)


def _start(index: int, call: ToolCall, finished: queue.SimpleQueue[tuple[int, str]]) -> threading.Thread:
    # a daemon: a call that hangs must not keep the program from ending
    context = contextvars.copy_context()

    def work() -> None:
        try:
            reply = context.run(reply_of, call)
        except BaseException as error:  # nobody else would hear of it, and the turn would wait
            reply = f"Tool error: {_message(error)}"
        finished.put((index, reply))

    thread = threading.Thread(target=work, name=f"tool-call-{index}", daemon=True)
    thread.start()
    return thread


def reply_of(call: ToolCall) -> str:
    """The tool's reply as a string; an exception is a reply too, so that one tool never loses the batch."""
    try:
        return str(call.tool(call.query))
    except (Exception, SystemExit) as error:
        return f"Tool error: {_message(error)}"


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
