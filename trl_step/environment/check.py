"""`check_environment`: what is wrong with an environment, in words, before a run finds out."""

from __future__ import annotations

import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.environment.actors import Actors
from trl_step.environment.protocol import UnreadableAction, first_observation, step_result
from trl_step.environment.rewards import is_finite
from trl_step.environment.side_by_side import Outcome
from trl_step.environment.sources import environment_maker
from trl_step.environment.tool_calls import control_pattern, special_tokens

ACTIONS = ("1", "yes", "", "no, 2", '<tool_call>{"name": ')
"""What a model may write, whatever it was asked."""


def check_environment(
    make_environment: Any,
    task: Any = None,
    *,
    actions: Sequence[str] = ACTIONS,
    tokenizer: Any = None,
    to_text: Callable[[Any], Any] | None = None,
    to_action: Callable[[str], Any] | None = None,
    turns: int = 10,
    slow: float = 1.0,
    strict: bool = False,
) -> list[str]:
    """Play a few episodes and say what is wrong, one sentence per problem; an empty list if nothing is.

    ```python
    for problem in check_environment(GuessTheNumber, task=3, actions=["8", "4", "no number"], tokenizer=tokenizer):
        print(problem)
    ```

    It looks at the types and the order of what `reset` and `step` return; whether one task with the same actions gives
    the same episode twice; whether `make_environment` can be sent to processes; how long a step takes; and, with a
    `tokenizer`, whether observations hold control tokens.

    Args:
        make_environment, to_text, to_action: as for `EnvironmentRunner`.
        task: given to `reset`.
        actions: texts that the model could write, one per turn, over and over.
        tokenizer: of the model.
        turns: most turns of an episode.
        slow: seconds of a step that are worth a sentence.
        strict: raise what the environment raised, with its traceback.
    """
    checked = _Checked(Actors(environment_maker(make_environment)), task, tuple(actions), to_text, to_action, turns)
    first, second = checked.play(), checked.play()
    if strict and first.exception is not None:
        raise first.exception
    problems = list(_in_what_was_returned(first, tokenizer))
    problems += _in_time(first, slow)
    if not first.broken:
        problems += _in_repetition(checked, first, second)
    if first.environment is second.environment and first.environment is not None:
        problems.append("make_environment returned the same object twice: each episode needs an environment of its own")
    problems += _in_pickling(make_environment)
    return problems


class _Turn(NamedTuple):
    action: str
    result: Any
    """what `step` returned"""
    unreadable: bool
    seconds: float


class _Played(NamedTuple):
    """An episode, as far as it went."""

    environment: Any
    start: Any
    """what `reset` returned"""
    turns: list[_Turn]
    problem: str = ""
    """what ended it: "step raised ..." """
    exception: BaseException | None = None
    to_text: Callable[[Any], Any] | None = None

    @property
    def broken(self) -> bool:
        return bool(self.problem)

    def observations(self) -> Iterator[tuple[str, Any]]:
        """Where each one comes from, and as the model sees it."""
        yield "reset", self._visible(first_observation(self.start))
        for number, turn in enumerate(self.turns):
            if isinstance(turn.result, tuple) and turn.result:
                yield f"step of turn {number}", self._visible(turn.result[0])

    def _visible(self, observation: Any) -> Any:
        return observation if self.to_text is None else self.to_text(observation)


class _Checked(NamedTuple):
    """The environment that is checked, and how."""

    actors: Actors
    task: Any
    actions: tuple[str, ...]
    to_text: Callable[[Any], Any] | None
    to_action: Callable[[str], Any] | None
    turns: int

    def play(self) -> _Played:
        """One episode with the actions in turn."""
        try:
            (environment,) = self.actors.create(1)
        except Exception as error:
            return _Played(None, None, [], f"make_environment raised {type(error).__name__}: {error}", error)
        try:
            (begun,) = self.actors.reset([environment], [self.task])
            played = _Played(environment, begun.value, [], to_text=self.to_text)
            if begun.error is not None:
                return played._replace(problem=f"reset raised {begun.error}", exception=begun.exception)
            for number in range(self.turns):
                turn, outcome = self._step(environment, self.actions[number % len(self.actions)], number)
                if outcome.error is not None and not turn.unreadable:
                    problem = f"step raised {outcome.error} for the action {turn.action!r}"
                    return played._replace(problem=problem, exception=outcome.exception)
                played.turns.append(turn)
                if not turn.unreadable and _over(turn.result):
                    break
            return played
        finally:
            self.actors.release([environment])

    def _step(self, environment: Any, action: str, number: int) -> tuple[_Turn, Outcome]:
        started = time.perf_counter()
        (outcome,) = self.actors.step([partial(self._act, environment, action, number)])
        unreadable = isinstance(outcome.exception, UnreadableAction)
        return _Turn(action, outcome.value, unreadable, time.perf_counter() - started), outcome

    def _act(self, environment: Any, action: str, number: int) -> Any:
        if self.to_action is not None:
            return environment.step(self.to_action(action))
        space = getattr(environment, "action_space", None)  # Gymnasium's
        if space is None:
            return environment.step(action)
        space.seed(number)
        return environment.step(space.sample())


def _over(result: Any) -> bool:
    try:
        found = step_result(result)
    except (ValueError, TypeError):
        return True
    return found.terminated or found.truncated


# --- the checks ------------------------------------------------------------------------------------------------------


def _in_what_was_returned(played: _Played, tokenizer: Any) -> Iterator[str]:
    """Errors, types, order, control tokens."""
    if played.broken:
        yield played.problem
    if played.environment is None or (played.broken and not played.turns and "reset" in played.problem):
        return
    for number, turn in enumerate(played.turns):
        if not turn.unreadable:
            yield from (f"turn {number}: {problem}" for problem in _in_result(turn.result))
    if played.turns and all(turn.unreadable for turn in played.turns):
        yield "to_action could read none of the actions: give `actions` that it can read, too"
    seen: set[str] = set()
    for place, observation in played.observations():
        for problem in _in_observation(place, observation, tokenizer):
            kind = problem.partition(":")[2]
            if kind not in seen:  # once, not for every turn
                yield problem
            seen.add(kind)


def _in_result(result: Any) -> Iterator[str]:
    """Types and order of what `step` returned."""
    if not isinstance(result, tuple) or len(result) not in (4, 5):
        try:
            step_result(result)
        except ValueError as error:
            yield str(error)
        return
    observation, reward, *ends, info = result
    if not is_finite(reward) or torch.as_tensor(reward).numel() != 1:
        order = ", reward, done, info" if len(result) == 4 else ", reward, terminated, truncated, info"
        swapped = f"; the order is observation{order}" if is_finite(observation) else ""
        yield f"the reward is {reward!r:.80}; it must be one finite number{swapped}"
    for name, end in zip(("done",) if len(ends) == 1 else ("terminated", "truncated"), ends, strict=True):
        if not isinstance(end, (bool, np.bool_)):
            yield f"{name} is {end!r:.80}, a {type(end).__name__}; return True or False"
    if info is not None and not isinstance(info, dict):
        yield f"info is {info!r:.80}, a {type(info).__name__}; return a dictionary"


def _in_observation(place: str, observation: Any, tokenizer: Any) -> Iterator[str]:
    if isinstance(observation, str):
        texts = [observation]
    else:
        messages = [observation] if isinstance(observation, dict) else observation
        good = isinstance(messages, (list, tuple)) and all(isinstance(m, dict) and "role" in m for m in messages)
        if not good:
            kind = type(observation).__name__
            yield f"{place}: the observation is a {kind}, not a text or messages; give a to_text that makes it one"
            return
        texts = [str(message.get("content")) for message in messages]
    if place == "reset" and not "".join(texts):
        yield "reset: the first observation is empty; the model needs some text to go on from"
    if tokenizer is None:
        return
    found = control_pattern(special_tokens(tokenizer)).search("\n".join(texts))
    if found is not None:
        yield (
            f"{place}: the observation holds the control token {found.group()!r}, which the tokenizer reads as such; "
            "leave it out, or use chat=True, which escapes it in texts"
        )


def _in_time(played: _Played, slow: float) -> Iterator[str]:
    longest = max((turn.seconds for turn in played.turns), default=0.0)
    if longest > slow:
        yield (
            f"a step took {longest:.2g} seconds, and a batch takes that long one after the other: let environments act "
            "side by side with step_workers, workers='process' or `async def step`"
        )


def _in_repetition(checked: _Checked, first: _Played, second: _Played) -> Iterator[str]:
    """Whether the task and the actions alone decide what happens."""
    turn = _first_difference(first, second)
    if turn is None:
        return
    with _same_random_numbers():
        third = checked.play()
    with _same_random_numbers():
        fourth = checked.play()
    if _first_difference(third, fourth) is None:
        yield (
            f"two episodes of the same task with the same actions differ in {turn}, as random numbers come from a "
            "global stream: draw them from a generator that `reset` makes from its task, or episodes of a group begin "
            "differently"
        )
    else:
        yield (
            f"two episodes of the same task with the same actions differ in {turn}, even with the same random numbers: "
            "it depends on a clock, on the order of a set, or on what other episodes did"
        )


def _first_difference(first: _Played, second: _Played) -> str | None:
    """The first place where two episodes differ."""
    if not _same(first_observation(first.start), first_observation(second.start)):
        return "the first observation"
    for number in range(max(len(first.turns), len(second.turns))):
        if number >= min(len(first.turns), len(second.turns)):
            return f"turn {number}"
        one, other = first.turns[number].result, second.turns[number].result
        if not _same(one[:-1] if isinstance(one, tuple) else one, other[:-1] if isinstance(other, tuple) else other):
            return f"turn {number}"
    return None


def _same(one: Any, other: Any) -> bool:
    """Whether two results, with arrays in them or not, are equal."""
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    try:
        first, second = np.asarray(one), np.asarray(other)
        return bool(np.all((first == second) | ((first != first) & (second != second))))  # NaN is NaN here
    except (TypeError, ValueError, RuntimeError):
        return one is other


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Global streams that begin at the same place, and are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(0)
            np.random.seed(0)
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _in_pickling(make_environment: Any) -> Iterator[str]:
    try:
        pickle.dumps(environment_maker(make_environment))
    except Exception as error:
        yield (
            f"make_environment cannot be sent to processes ({error}): for workers='process' give a class or function "
            "at the top of a module, or a functools.partial of one"
        )
