"""Awaits coroutines side by side, wherever the caller runs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Sequence
from typing import Any

from trl_step.environment.side_by_side import Outcome, failed


class EventLoop:
    """An event loop in a thread of its own, started when it is first needed.

    So it can be used inside of another loop, such as a notebook's, and what an environment opens in it (a client's
    connections) stays usable from turn to turn.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def settle(self, outcomes: Sequence[Outcome], timeout: float | None) -> list[Outcome]:
        """`outcomes`, where each value that can be awaited is awaited, all at the same time.

        Args:
            timeout: seconds for each of them; None waits forever. A late one is cancelled
        """
        waiting = [i for i, outcome in enumerate(outcomes) if inspect.isawaitable(outcome.value)]
        settled = list(outcomes)
        if waiting:
            found = asyncio.run_coroutine_threadsafe(
                _together([outcomes[i].value for i in waiting], timeout), self._running()
            ).result()
            for i, outcome in zip(waiting, found, strict=True):
                settled[i] = outcome
        return settled

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            # a daemon: a coroutine that hangs must not keep the program from exiting
            threading.Thread(target=self._loop.run_forever, name="environments", daemon=True).start()
        return self._loop


async def _together(awaitables: Sequence[Awaitable[Any]], timeout: float | None) -> list[Outcome]:
    return list(await asyncio.gather(*(_one(awaitable, timeout) for awaitable in awaitables)))


async def _one(awaitable: Awaitable[Any], timeout: float | None) -> Outcome:
    task = asyncio.ensure_future(awaitable)
    _, late = await asyncio.wait({task}, timeout=timeout)
    if late:
        task.cancel()
        return Outcome(error=f"no reply within {timeout:g} seconds")
    error = task.exception()
    return Outcome(task.result()) if error is None else failed(error)
