"""What an environment is: `reset` and `step` in their own form or in Gymnasium's, and what these return in one form."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from trl_step.data.chat_template import Message
from trl_step.environment.rewards import is_finite

Observation = str | Message | Sequence[Message]
"""Text, or one or several chat messages."""


class Environment(Protocol):
    """What a language model acts in, one object per episode.

    Both methods may be coroutine functions (`async def`). A method `close`, if there is one, is called at the end of
    the run, in the environment's own process if it has one.

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

    Args:
        message: a text or messages.
        price: one finite number, which is subtracted from the reward.

    Raises:
        TypeError: `message` is neither.
        ValueError: `price` is no finite number.
    """

    def __init__(self, message: Observation, price: float = 0.0) -> None:
        super().__init__(message, price)
        number = one_number(price)
        if number is None:
            raise ValueError(f"the price of an answer that cannot be read is {price!r:.80}; give a finite number")
        if not isinstance(message, (str, Mapping, Sequence)):
            raise TypeError(
                f"the message about an answer that cannot be read is {message!r:.80}; give a text or messages"
            )
        self.message = message
        self.price = number


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
        TypeError: the environment lacks a method, or is several in one; or it takes Gymnasium's arguments, and the task
            is none of them.
    """
    for name in ("reset", "step"):
        if not callable(getattr(environment, name, None)):
            raise TypeError(f"make_environment returned a {type(environment).__name__}, which has no method `{name}`")
    refuse_vector(environment)
    taken = gymnasium_arguments(environment)
    if taken is None:
        return environment.reset(task)
    given = _seed_and_options(task)
    return environment.reset(**{name: value for name, value in given.items() if name in taken})


def refuse_vector(environment: Any) -> None:
    """Raise a `TypeError` for a vector environment of Gymnasium, which is several episodes in one object."""
    vector = sys.modules.get("gymnasium.vector")  # without it there is no such object
    if vector is not None and isinstance(environment, vector.VectorEnv):
        raise TypeError(
            f"a {type(environment).__name__} is a vector of environments: give a single one, such as "
            "`lambda: gymnasium.make(...)`; the runner plays one for each task side by side"
        )


def _seed_and_options(task: Any) -> dict[str, Any]:
    """A task as the arguments of Gymnasium's `reset`."""
    if task is None:
        return {}
    if isinstance(task, Mapping) and task.keys() <= {"seed", "options"}:
        seed = whole_number(task.get("seed"))
        return dict(task) if seed is None else {**task, "seed": seed}
    seed = whole_number(task)
    if seed is not None:
        return {"seed": seed}
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
    ordered = [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    names, kinds, both = set(ordered), {one.kind for one in parameters}, {"seed", "options"}
    if names > both and ordered[0] in both:  # and more, such as `return_info=False`
        names = both
    if inspect.Parameter.POSITIONAL_ONLY in kinds or not names <= both:
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
    observation, reward, *ends, info = result
    number = one_number(reward)
    if number is None:
        raise ValueError(f"step returned the reward {reward!r:.80}; a reward is one finite number")
    flags = [flag(end) for end in ends]
    for name, end, found in zip(names_of_ends(result), ends, flags, strict=True):
        if found is None:
            raise ValueError(f"step returned {name}={end!r:.80}; it is True or False")
    if info is not None and not isinstance(info, Mapping):
        raise ValueError(f"step returned the info {info!r:.80}; it is a dictionary, or None")
    return StepResult(observation, number, bool(flags[0]), len(flags) == 2 and bool(flags[1]), dict(info or {}))


def names_of_ends(result: tuple[Any, ...]) -> tuple[str, ...]:
    """What stands between the reward and the info of a step."""
    return ("done",) if len(result) == 4 else ("terminated", "truncated")


def flag(given: Any) -> bool | None:
    """True or False, also as 0, 1 or an array with one of them; None for anything else.

    What only counts as true, such as a text, a reward or a dictionary, stands in the wrong place.
    """
    try:
        found = given.item() if hasattr(given, "item") else given
    except (TypeError, ValueError, RuntimeError):
        return None
    return bool(found) if isinstance(found, int) and found in (0, 1) else None


def one_number(given: Any) -> float | None:
    """A finite number, or that of an array or tensor with one element; None for anything else."""
    if not is_finite(given):
        return None
    try:
        return float(given.reshape(()) if hasattr(given, "reshape") else given)
    except (TypeError, ValueError, RuntimeError):
        return None


def whole_number(given: Any) -> int | None:
    """An int, also one of NumPy or torch; None for anything else."""
    try:
        return None if isinstance(given, bool) else operator.index(given)
    except (TypeError, ValueError):
        return None


def check_turns(turns: Any, name: str = "max_turns") -> None:
    """Raise a `ValueError` unless it is a number of turns."""
    number = whole_number(turns)
    if number is None or number < 1:
        raise ValueError(f"{name}={turns!r} must be a whole number, at least 1")


def tasks_and_groups(tasks: Any, n: Any) -> tuple[list[Any], list[int]]:
    """Each task `n` times, one after the other, and the number of each one's task.

    Raises:
        TypeError: `tasks` is no list.
        ValueError: `n` is no number of episodes.
    """
    if isinstance(tasks, (str, bytes, Mapping)) or not isinstance(tasks, Iterable):
        raise TypeError(f"run takes a list of tasks, got a {type(tasks).__name__}; put a single task in a list")
    number = whole_number(n)
    if number is None or number < 1:
        raise ValueError(f"n={n!r} episodes per task; give a whole number, 1 or more")
    listed = list(tasks)
    groups = [group for group in range(len(listed)) for _ in range(number)]
    return [listed[group] for group in groups], groups
