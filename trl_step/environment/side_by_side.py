"""Runs jobs that may be slow or fail, such as tools, in parallel threads, each with a time limit."""

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
"""No further job is started once this many late jobs are still running. A thread cannot be killed."""


class Outcome(NamedTuple):
    """What a job returned, or a text that says what went wrong, and the exception if the job raised one."""

    value: Any = None
    error: str | None = None
    exception: BaseException | None = None


class SideBySide:
    """Runs a list of jobs in parallel threads.

    Args:
        workers: jobs that run at the same time; 0 runs them one by one in the caller's thread, without a time
            limit (for objects that may only be used from the thread that created them).
        timeout: seconds that one job may take from its own start; None waits forever.

    A job that runs out of time gets an error as its outcome and is abandoned, as Python cannot stop a thread; the next
    job starts at once. Run anything that may hang or do harm in a separate process.
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
        """The outcome of each job, in order. An exception is an outcome too."""
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
    # a daemon: a hanging call must not keep the program from exiting
    context = contextvars.copy_context()

    def work() -> None:
        try:
            outcome = context.run(outcome_of, job)
        except BaseException as error:  # nothing else would report it, and the turn would wait forever
            outcome = failed(error)
        finished.put((index, outcome))

    thread = threading.Thread(target=work, name=f"call-{index}", daemon=True)
    thread.start()
    return thread


def outcome_of(job: Callable[[], Any]) -> Outcome:
    """What `job` returns; an exception is an outcome too, so that one job never breaks the batch."""
    try:
        return Outcome(job())
    except (Exception, SystemExit) as error:
        return failed(error)


def failed(error: BaseException) -> Outcome:
    """The outcome of a job that raised `error`."""
    return Outcome(error=_message(error), exception=error)


def _message(error: BaseException) -> str:
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__
