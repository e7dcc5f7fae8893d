"""Where environments live and act: in this process, in threads, awaited, or in processes of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from trl_step.environment.awaiting import EventLoop
from trl_step.environment.process_pool import LateError, ProcessPool, RemoteError, close
from trl_step.environment.protocol import begin
from trl_step.environment.side_by_side import Outcome, SideBySide, outcome_of
from trl_step.models.notices import described, warn_user

WORKERS = ("thread", "process")
MOST_WAITING = 1024
"""Threads that wait for processes at the same time."""
Job = Callable[[], Any]


class Actors:
    """Creates environments and lets them act side by side.

    What `reset` and `step` return is awaited, all at the same time, if it can be.

    Args:
        make_environment: creates one environment.
        workers: "thread": in this process; "process": each in a process of its own.
        number: how many act at the same time, apart from those that are awaited; 0 is one after the other in the
            caller's thread, of processes as many as there are.
        timeout: seconds that one reset or step may take, of threads with `number` only; None waits forever.
    """

    def __init__(
        self,
        make_environment: Callable[[], Any],
        workers: str = "thread",
        number: int = 0,
        timeout: float | None = None,
    ) -> None:
        if workers not in WORKERS:
            raise ValueError(f'workers={workers!r} must be "thread" or "process"')
        self.make_environment = make_environment
        self.timeout = timeout
        self.pool = ProcessPool(make_environment, timeout) if workers == "process" else None
        if self.pool is not None:  # threads that wait for processes, which watch their own time
            number, timeout = number or MOST_WAITING, None
        self._threads = SideBySide(number, timeout)
        self._loop = EventLoop()

    def create(self, number: int) -> list[Any]:
        """So many environments."""
        if self.pool is None:
            return [self.make_environment() for _ in range(number)]
        return [self.pool.take() for _ in range(number)]

    def reset(self, environments: Sequence[Any], tasks: Sequence[Any]) -> list[Outcome]:
        """What `reset` of each environment returns for its task."""
        pairs = zip(environments, tasks, strict=True)
        return self._settle(self._threads.run([partial(begin, *pair) for pair in pairs]), self.timeout)

    def step(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What each job, a step of an environment, returns."""
        return self._settle(self._threads.run(jobs), self.timeout)

    def release(self, environments: Sequence[Any]) -> None:
        """The episodes are over: close the environments, and let their processes wait for others."""
        try:
            problems = [outcome.error for outcome in self.closed(environments) if outcome.error is not None]
        finally:
            if self.pool is not None:
                for environment in environments:
                    self.pool.give_back(environment)
        if problems:
            warn_user(f"{len(problems)} environments could not be closed: {problems[0]}")

    def closed(self, environments: Sequence[Any]) -> list[Outcome]:
        """What `close` of each environment returns, None for one without."""
        jobs = [partial(close, environment) for environment in environments]
        # in this process, environments are closed by the thread that made them
        outcomes = [outcome_of(job) for job in jobs] if self.pool is None else self._threads.run(jobs)
        return self._settle(outcomes, self.timeout)

    def close(self) -> None:
        """End the processes, if there are any."""
        if self.pool is not None:
            self.pool.close()

    def _settle(self, outcomes: Sequence[Outcome], timeout: float | None) -> list[Outcome]:
        return [in_words(outcome) for outcome in self._loop.settle(outcomes, timeout)]


def in_words(outcome: Outcome) -> Outcome:
    """With type and line in the error's text, wherever it was raised."""
    if isinstance(outcome.exception, LateError):
        return Outcome(error=outcome.exception.problem)  # as of a thread that is late
    if isinstance(outcome.exception, RemoteError):
        return Outcome(error=outcome.exception.problem, exception=outcome.exception.original)
    return outcome if outcome.exception is None else outcome._replace(error=described(outcome.exception))
