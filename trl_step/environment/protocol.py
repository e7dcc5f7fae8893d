"""What an environment is: `reset` and `step` in their own form or in Gymnasium's, and what these return in one form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from trl_step.data.chat_template import Message
from trl_step.environment.rewards import is_finite

Observation = str | Message | Sequence[Message]
"""Text, or one or several chat messages."""


class Environment(Protocol):
    """What a language model acts in, one object per episode.

    Both methods may be coroutine functions (`async def`). A method `close`, if there is one, is called after the
    episode.

    Gymnasium's form is taken as well: `reset(seed=, options=) -> (observation, info)`, where a task that is an int is
    the seed, and one that is a dictionary holds `seed` and `options`; and
    `step(action) -> (observation, reward, terminated, truncated, info)`.
    """

    def reset(self, task: Any) -> Observation:
        """Begin an episode; returns what the model sees first."""

    def step(self, action_text: str) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Act; returns the next observation, the turn's reward, whether the episode is over, and an info dictionary.

        The model writes the text: treat it as hostile.
        """


class UnreadableAction(Exception):
    """Raised by `to_action`, or by an environment's `step`, for an answer that cannot be read.

    The turn costs `price`, the model sees `message`, and the episode goes on.
    """

    def __init__(self, message: Observation, price: float = 0.0) -> None:
        super().__init__(message, price)
        if not is_finite(price):
            raise ValueError(f"the price of an answer that cannot be read is {price!r}; give a finite number")
        self.message = message
        self.price = price


class StepResult(NamedTuple):
    """What a step did."""

    observation: Any
    reward: float
    terminated: bool
    """the episode came to its end"""
    truncated: bool
    """the environment cut the episode off; it would have gone on"""
    info: dict[str, Any]


def begin(environment: Any, task: Any) -> Any:
    """What `reset` returns, called in the form that it takes.

    Raises:
        TypeError: the environment takes Gymnasium's arguments, and the task is none of them.
    """
    taken = gymnasium_arguments(environment)
    if taken is None:
        return environment.reset(task)
    given = _seed_and_options(task)
    return environment.reset(**{name: value for name, value in given.items() if name in taken})


def _seed_and_options(task: Any) -> dict[str, Any]:
    """A task as the arguments of Gymnasium's `reset`."""
    if task is None:
        return {}
    if isinstance(task, int) and not isinstance(task, bool):
        return {"seed": task}
    if isinstance(task, Mapping) and task.keys() <= {"seed", "options"}:
        return dict(task)
    raise TypeError(
        "a task of an environment with Gymnasium's reset is None, a seed, or a dictionary with `seed` and `options`, "
        f"got {task!r:.80}"
    )


def gymnasium_arguments(environment: Any) -> set[str] | None:
    """Which of `seed` and `options` the environment's `reset` takes; None if it takes a task."""
    try:
        parameters = inspect.signature(environment.reset).parameters.values()
    except (TypeError, ValueError):
        return None
    names = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    kinds = {one.kind for one in parameters}
    if inspect.Parameter.POSITIONAL_ONLY in kinds or not names <= {"seed", "options"}:
        return None
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return {"seed", "options"}
    return names if "seed" in names else None


def first_observation(result: Any) -> Any:
    """The observation in what `reset` returned: itself, or the first of Gymnasium's (observation, info)."""
    if isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping) and "role" not in result[1]:
        return result[0]
    return result


def step_result(result: Any) -> StepResult:
    """What `step` returned in one form, or a `ValueError` that says what is wrong with it."""
    if not isinstance(result, tuple) or len(result) not in (4, 5):
        raise ValueError(
            f"step returned {result!r:.80}; it must return (observation, reward, done, info), or Gymnasium's "
            "(observation, reward, terminated, truncated, info)"
        )
    observation, reward, terminated, *cut, info = result
    if not is_finite(reward) or torch.as_tensor(reward).numel() != 1:
        raise ValueError(f"step returned the reward {reward!r:.80}; a reward is one finite number")
    ends = _flag("terminated" if cut else "done", terminated), bool(cut) and _flag("truncated", cut[0])
    return StepResult(observation, float(reward), *ends, dict(info or {}))


def _flag(name: str, given: Any) -> bool:
    try:
        number = None if isinstance(given, str) else float(given or 0)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number not in (0, 1):
        raise ValueError(f"step returned {given!r:.80} for {name}, which is True or False")
    return bool(number)
