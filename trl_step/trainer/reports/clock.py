"""How long the parts of a step take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Starts when it is made; `with clock("forward_pass"):` times a part."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}
        """key under which it is logged -> seconds"""

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Times the block as "time/ppo/`part`"."""
        start = time.perf_counter()
        yield
        self.seconds[f"time/ppo/{part}"] = time.perf_counter() - start

    def stop(self) -> float:
        """Seconds since the clock was made, which it notes down as "time/ppo/total"."""
        total = self.seconds["time/ppo/total"] = time.perf_counter() - self._start
        return total
