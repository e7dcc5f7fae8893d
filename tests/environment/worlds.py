"""Environments that other processes can import by name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import gymnasium

from trl_step.environment import UnreadableAction


class Countdown:
    """Says how many turns are left; a turn's reward is the length of what was said. Some words do something."""

    def reset(self, task: Any) -> str:
        if task == "hang":
            time.sleep(1000)
        self.left = int(task)
        return f"{self.left} left:"

    def step(self, action_text: str) -> tuple[Any, float, bool, dict[str, Any]]:
        self.left -= 1
        match action_text:
            case "die":
                os._exit(7)
            case "hang":
                time.sleep(1000)
            case "interrupt":  # the process whose number is the task, as Ctrl-C does
                os.kill(self.left + 1, signal.SIGINT)
                time.sleep(1)
            case "raise":
                return {}["boom"]  # the line that reports must name
            case "file":
                return open(os.devnull), 0.0, False, {}  # no process can send it
            case "what":
                raise UnreadableAction("say it again:", 0.25)
        return f"[{self.left} left]", float(len(action_text)), self.left == 0, {"process": os.getpid()}


class AwaitedCountdown(Countdown):
    """The same with coroutines; `together` steps meet in each turn."""

    here = 0
    together = 1

    async def reset(self, task: Any) -> str:  # type: ignore[override]
        if task == "hang":
            await asyncio.sleep(1000)
        return super().reset(task)

    async def step(self, action_text: str) -> Any:  # type: ignore[override]
        if action_text == "hang":
            await asyncio.sleep(1000)
        kind = type(self)
        kind.here += 1
        while kind.here % kind.together:  # one after the other they would wait for ever
            await asyncio.sleep(0)
        return super().step(action_text)


class Closing(Countdown):
    """Leaves a file named after the task in `folder` when it is closed; task 7 hangs there, 5 raises."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reset(self, task: Any) -> str:
        self.task = task
        return super().reset(task)

    async def close(self) -> Any:
        if self.task == 7:
            time.sleep(1000)
        if self.task == 5:
            raise OSError("no such display")
        (self.folder / str(self.task)).touch()
        return lambda: None  # no process can send it


class SlowToLoad:
    """Makes a `Countdown`; a process takes seconds to load it."""

    def __call__(self) -> Countdown:
        return Countdown()

    def __reduce__(self) -> Any:
        return slowly, ()


def slowly() -> Any:
    time.sleep(2)
    return Countdown


class Corridor(gymnasium.Env):
    """Pays 1 per step and never ends by itself; observations are numbers, and so are actions."""

    observation_space = gymnasium.spaces.Discrete(1000)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = (options or {}).get("place", int(self.np_random.integers(100)))
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.place += 1 if action else -1
        return self.place, 1.0, False, False, {"place": self.place}


def short_corridor() -> gymnasium.Env:
    """Cut off after three steps."""
    return gymnasium.wrappers.TimeLimit(Corridor(), max_episode_steps=3)
