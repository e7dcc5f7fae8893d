"""Environments in processes of their own, one process per episode: they may hold the interpreter, or die."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import pickle
import random
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.environment.awaiting import EventLoop
from trl_step.environment.protocol import begin
from trl_step.environment.side_by_side import outcome_of
from trl_step.models.notices import described

LONGEST_CLOSE = 60.0
"""Seconds that the `close` of an environment may take if there is no limit for a step."""


class Reply(NamedTuple):
    """What a process answers."""

    value: Any = None
    problem: str | None = None
    """type, message and line of what was raised"""
    error: BaseException | None = None
    """what was raised, if it can be sent"""
    where: str = ""
    """its traceback"""


class RemoteTraceback(Exception):
    """The text of a traceback in an environment's process."""


class RemoteError(Exception):
    """What went wrong in an environment's process: what it raised, with type and line there; or its death.

    Attributes:
        original: what was raised, or this error if that could not be sent.
    """

    def __init__(self, problem: str, error: BaseException | None = None, where: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.original = self if error is None else error
        if where:  # a traceback cannot be sent; its text is printed above the error's own
            self.original.__cause__ = RemoteTraceback(f"\n{where}")


class LateError(RemoteError):
    """An environment's process took too long, and was ended."""


class ProcessPool:
    """Processes that each hold one environment at a time. A process is used again after its episode.

    Args:
        make_environment: creates an environment; sent to the processes, so it must be picklable: a class or function at
            the top of a module, or a `functools.partial` of one.
        timeout: seconds that one `reset`, `step` and `close` may take; the process of a late one is ended. None waits
            forever, for a `close` `LONGEST_CLOSE`.

    Raises:
        TypeError: `make_environment` cannot be sent.
    """

    def __init__(self, make_environment: Callable[[], Any], timeout: float | None) -> None:
        try:
            pickle.dumps(make_environment)
        except Exception as error:
            raise TypeError(
                "workers='process' sends make_environment to other processes, which must find it by its name: give a "
                f"class or function at the top of a module, or a functools.partial of one ({error})"
            ) from error
        self.make_environment = make_environment
        self.timeout = timeout
        self._idle: list[RemoteEnvironment] = []
        self._started = 0
        methods = multiprocessing.get_all_start_methods()
        # fork is not safe beside threads; a server that has imported this package forks in milliseconds
        self._context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self._context.set_forkserver_preload(["__main__", __name__])

    def take(self) -> RemoteEnvironment:
        """An environment in an idle process, or in a new one."""
        while self._idle:
            environment = self._idle.pop()
            if environment.process.is_alive():  # else something ended it since
                return environment
        self._started += 1
        seed = (torch.initial_seed() + self._started) % 2**32  # the same in each run with the same seed
        return RemoteEnvironment(self._context, self.make_environment, seed, self.timeout)

    def give_back(self, environment: RemoteEnvironment) -> None:
        """The episode is over."""
        if environment.owes_reply:  # the caller was interrupted: the next episode would take it for its own
            environment.process.kill()  # the thread that waits for it closes the connection
        elif environment.process.is_alive():
            self._idle.append(environment)

    def close(self) -> None:
        """End all idle processes."""
        while self._idle:
            self._idle.pop().end()


class RemoteEnvironment:
    """`reset`, `step` and `close` of an environment in a process of its own.

    They raise `RemoteError` for what the environment raised and if its process died, and `LateError` after `timeout`
    seconds, when the process is ended. The creation of the environment counts for `reset`, the start of the process
    does not.
    """

    def __init__(
        self, context: Any, make_environment: Callable[[], Any], seed: int, timeout: float | None = None
    ) -> None:
        self.timeout = timeout
        self.owes_reply = False
        self._started = False
        self._connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_environment, seed), daemon=True)
        self.process.start()
        theirs.close()

    def reset(self, task: Any) -> Any:
        return self._ask(("reset", task), self.timeout)

    def step(self, action: Any) -> Any:
        return self._ask(("step", action), self.timeout)

    def close(self) -> None:
        """The environment's own `close`; nothing if its process has died or still owes a reply."""
        if self.process.is_alive() and not self.owes_reply:
            self._ask(("close", None), self.timeout or LONGEST_CLOSE)

    def end(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.join()
        self._connection.close()

    def _ask(self, question: tuple[str, Any], timeout: float | None) -> Any:
        try:
            self.owes_reply = True
            if not self._started:  # a start takes seconds that are not the environment's
                self._connection.recv()
                self._started = True
            self._connection.send(question)
            if not self._connection.poll(timeout):
                self.process.kill()
                self.process.join()  # or the pool would take it for alive, and give it to the next episode
                raise LateError(f"no reply within {timeout:g} seconds; its process was ended")
            reply = Reply(*self._connection.recv())
            self.owes_reply = False
        except (EOFError, ConnectionError) as error:
            self.process.join(5)
            raise RemoteError(f"its process died, exit code {self.process.exitcode}") from error
        if reply.problem is not None:
            raise RemoteError(reply.problem, reply.error, reply.where)
        return reply.value


def _serve(connection: Connection, make_environment: Callable[[], Any], seed: int) -> None:
    """The process: answer questions until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    loop, environment = EventLoop(), None
    with suppress(ConnectionError):
        _answer(connection, Reply())  # it has started
    while True:
        try:
            verb, argument = connection.recv()
        except (EOFError, ConnectionError):
            # neither a `close` that hangs nor the environment's threads must keep an orphan alive
            threading.Timer(LONGEST_CLOSE, os._exit, (0,)).start()
            loop.settle([outcome_of(partial(close, environment))], None)
            os._exit(0)

        def act(verb: str = verb, argument: Any = argument) -> Any:
            nonlocal environment
            if verb == "reset":
                environment = make_environment()
                return begin(environment, argument)
            if verb == "step":
                return environment.step(argument)
            over, environment = environment, None
            return close(over)

        (outcome,) = loop.settle([outcome_of(act)], None)
        value = None if verb == "close" else outcome.value
        _answer(connection, Reply(value) if outcome.error is None else _reply_of(outcome.exception))


def _answer(connection: Connection, reply: Reply) -> None:
    try:
        connection.send(tuple(reply))
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        problem = f"what the environment returned cannot be sent between processes: {error}"
        connection.send(tuple(Reply(problem=problem)))


def _reply_of(error: Any) -> Reply:
    where = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return Reply(problem=described(error), where=where)
    return Reply(problem=described(error), error=error, where=where)


def close(environment: Any) -> Any:
    """Call the environment's own `close`, if it has one; what it returns may have to be awaited."""
    method = getattr(environment, "close", None)
    return method() if inspect.isroutine(method) else None
