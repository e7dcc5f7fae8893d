"""Runs what may be slow or fail, such as tools, side by side in threads, with a time limit each."""

from __future__ import annotations

import contextvars
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MOST_ABANDONED = 64
"""Jobs that ran out of time and still run, before no further one is started. A thread cannot be killed."""


class Outcome(NamedTuple):
    """What a job returned, or what went wrong with it in words."""

    value: Any = None
    error: str | None = None


class SideBySide:
    """Runs a list of jobs side by side.

    Args:
        workers: jobs that run at the same time; 0 runs them one by one in the caller's thread, without a time
            limit (for what may only be used from the thread that made it).
        timeout: seconds that one job may take from its own start; None waits for ever.

    A job that runs out of time is answered and left behind: Python cannot stop a thread. It gives its place to the
    next one at once. Run what may hang or do harm in a process of its own.
    """

    def __init__(self, workers: int = 32, timeout: float | None = 60.0) -> None:
        """Raises ValueError for a negative number of workers, or a time limit that is not positive."""
        if workers < 0:
            raise ValueError(f"workers={workers} must not be negative")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout={timeout} must be a positive number of seconds, or None")
        self.workers = workers
        self.timeout = timeout
        self._abandoned: list[threading.Thread] = []

    def run(self, jobs: Sequence[Callable[[], Any]]) -> list[Outcome]:
        """The outcome of each job, in order. Whatever a job raises is an outcome too."""
        if self.workers == 0:
            return [outcome_of(job) for job in jobs]
        outcomes: dict[int, Outcome] = {}
        waiting = deque(enumerate(jobs))
        running: dict[int, tuple[threading.Thread, float]] = {}
        finished: queue.SimpleQueue[tuple[int, Outcome]] = queue.SimpleQueue()
        while waiting or running:
            while waiting and len(running) < self.workers:
                i, job = waiting.popleft()
                if self._still_hanging() >= MOST_ABANDONED:
                    outcomes[i] = Outcome(error=f"{MOST_ABANDONED} earlier calls hang, no further call is started")
                else:
                    deadline = time.monotonic() + (self.timeout or math.inf)
                    running[i] = (_start(i, job, finished), deadline)
            for i, outcome in self._next(running, finished):
                outcomes[i] = outcome
                del running[i]
        return [outcomes[i] for i in range(len(jobs))]

    def _next(
        self, running: Mapping[int, tuple[threading.Thread, float]], finished: queue.SimpleQueue[tuple[int, Outcome]]
    ) -> list[tuple[int, Outcome]]:
        """Wait until a job is done or out of time."""
        if not running:
            return []
        patience = min(deadline for _, deadline in running.values()) - time.monotonic()
        try:
            i, outcome = finished.get(timeout=min(max(0.0, patience), threading.TIMEOUT_MAX))
            return [(i, outcome)] if i in running else []  # else: late, already answered
        except queue.Empty:
            now = time.monotonic()
            late = [i for i, (_, deadline) in running.items() if deadline <= now]
            self._abandoned += [running[i][0] for i in late]
            return [(i, Outcome(error=f"no reply within {self.timeout:g} seconds")) for i in late]

    def _still_hanging(self) -> int:
        self._abandoned = [thread for thread in self._abandoned if thread.is_alive()]
        return len(self._abandoned)


def _start(index: int, job: Callable[[], Any], finished: queue.SimpleQueue[tuple[int, Outcome]]) -> threading.Thread:
    # a daemon: a call that hangs must not keep the program from ending
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome = context.run(outcome_of, job)
        except BaseException as error:  # nobody else would hear of it, and the turn would wait
            outcome = Outcome(error=_message(error))
        finished.put((index, outcome))

    thread = threading.Thread(target=work, name=f"call-{index}", daemon=True)
    thread.start()
    return thread


def outcome_of(job: Callable[[], Any]) -> Outcome:
    """What `job` returns; an exception is an outcome too, so that one job never loses the batch."""
    try:
        return Outcome(job())
    except (Exception, SystemExit) as error:
        return Outcome(error=_message(error))


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
