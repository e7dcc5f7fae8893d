"""`check_environment`: what is wrong with an environment, in words, before a run finds out."""

from __future__ import annotations

import inspect
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.environment.actors import Actors, in_words
from trl_step.environment.protocol import (
    UnreadableAction,
    check_turns,
    first_observation,
    gymnasium_arguments,
    names_of_ends,
    one_number,
    step_result,
)
from trl_step.environment.rewards import is_finite
from trl_step.environment.side_by_side import Outcome, outcome_of
from trl_step.environment.sources import environment_maker
from trl_step.environment.tool_calls import control_pattern, special_tokens
from trl_step.models.notices import described

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
    the same episode twice, also while another one is played; whether `make_environment` and what the environment
    returns can be sent to processes; how long `reset` and `step` take; and, with a `tokenizer`, whether observations
    hold control tokens.

    Args:
        make_environment, to_text, to_action: as for `EnvironmentRunner`.
        task: given to `reset`; None is the seed 0 for an environment with Gymnasium's `reset`.
        actions: texts that the model could write, one per turn, over and over.
        tokenizer: of the model.
        turns: most turns of an episode.
        slow: seconds of a `reset` or a `step` that are worth a sentence.
        strict: raise what the environment, `to_text` or `to_action` raised, with its traceback.

    Raises:
        TypeError, ValueError: `make_environment`, `actions` or `turns` is none.
    """
    if isinstance(actions, str) or not actions:
        raise ValueError(f"actions={actions!r:.80}; give a list of texts that the model could write, one at least")
    check_turns(turns, "turns")
    actors = Actors(environment_maker(make_environment))
    checked = _Checked(actors, task, tuple(actions), to_text, to_action, turns)
    first, second = checked.play(), checked.play()
    if strict and first.exception is not None:
        raise first.exception
    problems = list(_in_what_was_returned(first, tokenizer))
    problems += _in_time(first, slow)
    if not first.broken:
        problems += _in_repetition(checked, first, second)
    problems += _in_pickling(make_environment, first)
    return problems


class _Turn(NamedTuple):
    action: str
    result: Any
    """what `step` returned"""
    unreadable: UnreadableAction | None
    seconds: float
    seen: Any = None
    """the observation as the model sees it; None at the end, where nobody does"""


class _Played(NamedTuple):
    """An episode, as far as it went."""

    environment: Any
    start: Any
    """what `reset` returned"""
    turns: list[_Turn]
    problem: str = ""
    """what ended it: "step raised ..." """
    exception: BaseException | None = None
    seconds: float = 0.0
    """of the beginning"""
    seen: Any = None
    """the first observation as the model sees it"""
    begun: bool = False
    """whether there is one"""

    @property
    def broken(self) -> bool:
        return bool(self.problem)

    def observations(self) -> Iterator[tuple[str, Any]]:
        """Where each one comes from, and as the model sees it."""
        yield "reset", self.seen
        for number, turn in enumerate(self.turns):
            if turn.unreadable is not None or (_is_result(turn.result) and not _terminated(turn.result)):
                yield f"step of turn {number}", turn.seen


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
        (played,) = self.side_by_side(1)
        return played

    def side_by_side(self, number: int) -> list[_Played]:
        """So many episodes, which take turns; each as far as it goes."""
        started = time.perf_counter()
        try:
            environments = self.actors.create(number)
        except Exception as error:
            return [_Played(None, None, [], f"make_environment raised {described(error)}", error)] * number
        try:
            episodes = [self._begin(environment, started) for environment in environments]
            going = [not episode.broken for episode in episodes]
            for turn in range(self.turns):
                for i, environment in enumerate(environments):
                    if going[i]:
                        episodes[i], going[i] = self._step(episodes[i], environment, turn)
        finally:
            closed = self.actors.closed(environments)
        for i, outcome in enumerate(closed):
            if outcome.error is not None and not episodes[i].broken:
                problem = f"close raised {outcome.error}"
                episodes[i] = episodes[i]._replace(problem=problem, exception=outcome.exception)
        return episodes

    def _begin(self, environment: Any, started: float) -> _Played:
        task = self.task
        if task is None and outcome_of(lambda: gymnasium_arguments(environment)).value:
            task = 0
        (begun,) = self.actors.reset([environment], [task])
        played = _Played(environment, begun.value, [], seconds=time.perf_counter() - started)
        if begun.error is not None:
            return played._replace(problem=f"reset raised {begun.error}", exception=begun.exception)
        seen = self._seen(first_observation(begun.value))
        if seen.error is not None:
            problem = f"to_text raised {seen.error} for the first observation"
            return played._replace(problem=problem, exception=seen.exception)
        return played._replace(seen=seen.value, begun=True)

    def _step(self, played: _Played, environment: Any, number: int) -> tuple[_Played, bool]:
        """The episode with another turn, and whether it goes on."""
        started, action = time.perf_counter(), self.actions[number % len(self.actions)]
        (outcome,) = self.actors.step([partial(self._act, environment, action, number)])
        seconds, unreadable = time.perf_counter() - started, None
        if isinstance(outcome.exception, UnreadableAction):
            unreadable = outcome.exception
        elif outcome.error is not None:
            problem = f"step raised {outcome.error} for the action {action!r}"
            return played._replace(problem=problem, exception=outcome.exception), False
        turn = _Turn(action, outcome.value, unreadable, seconds, unreadable and unreadable.message)
        goes_on = unreadable is not None or not _over(turn.result)
        if unreadable is None and _is_result(turn.result) and not _terminated(turn.result):
            seen = self._seen(turn.result[0])
            if seen.error is not None:
                problem = f"to_text raised {seen.error} for the observation of turn {number}"
                return played._replace(problem=problem, exception=seen.exception), False
            turn = turn._replace(seen=seen.value)
        return played._replace(turns=[*played.turns, turn]), goes_on

    def _seen(self, observation: Any) -> Outcome:
        """The observation as the model sees it."""
        to_text = self.to_text
        return Outcome(observation) if to_text is None else in_words(outcome_of(lambda: to_text(observation)))

    def _act(self, environment: Any, action: str, number: int) -> Any:
        if self.to_action is not None:
            return environment.step(self.to_action(action))
        space = getattr(environment, "action_space", None)  # Gymnasium's
        if space is None:
            return environment.step(action)
        space.seed(number)
        return environment.step(space.sample())


def _is_result(result: Any) -> bool:
    return isinstance(result, tuple) and len(result) in (4, 5)


def _terminated(result: Any) -> bool:
    try:
        return step_result(result).terminated
    except ValueError:
        return False


def _over(result: Any) -> bool:
    """Whether nothing follows: the end, or what the runner cannot take."""
    try:
        found = step_result(result)
    except ValueError:
        return True
    return found.terminated or found.truncated


# --- the checks ------------------------------------------------------------------------------------------------------


def _in_what_was_returned(played: _Played, tokenizer: Any) -> Iterator[str]:
    """Errors, types, order, control tokens."""
    if played.broken:
        yield played.problem
    if not played.begun:
        return
    if played.turns and all(turn.unreadable for turn in played.turns):
        yield "to_action could read none of the actions: give `actions` that it can read, too"
    turns = enumerate(played.turns)
    found = [(f"turn {n}", problem) for n, turn in turns if not turn.unreadable for problem in _in_result(turn.result)]
    for place, observation in played.observations():
        found += [(place, problem) for problem in _in_observation(place, observation, tokenizer)]
    seen: set[str] = set()
    for place, problem in found:
        if problem not in seen:  # once, not for every turn
            yield f"{place}: {problem}"
        seen.add(problem)


def _in_result(result: Any) -> Iterator[str]:
    """Types and order of what `step` returned."""
    if not _is_result(result):
        try:
            step_result(result)
        except ValueError as error:
            yield str(error)
        return
    observation, reward, *ends, info = result
    if one_number(reward) is None:
        order = ", reward, done, info" if len(result) == 4 else ", reward, terminated, truncated, info"
        swapped = f"; the order is observation{order}" if is_finite(observation) else ""
        yield f"the reward is {reward!r:.80}; it must be one finite number{swapped}"
    for name, end in zip(names_of_ends(result), ends, strict=True):
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
            yield f"the observation is a {kind}, not a text or messages; give a to_text that makes it one"
            return
        texts = [str(message.get("content")) for message in messages]
    if place == "reset" and not "".join(texts):
        yield "the first observation is empty; the model needs some text to go on from"
    if tokenizer is None:
        return
    found = control_pattern(special_tokens(tokenizer)).search("\n".join(texts))
    if found is not None:
        yield (
            f"the observation holds the control token {found.group()!r}, which the tokenizer reads as such; "
            "leave it out, or use chat=True, which escapes it in texts"
        )


def _in_time(played: _Played, slow: float) -> Iterator[str]:
    longest = max((turn.seconds for turn in played.turns), default=0.0)
    if played.seconds > slow:
        yield (
            f"the environment and its first observation took {played.seconds:.2g} seconds, and a batch needs one for "
            "each episode"
        )
    if longest > slow and inspect.iscoroutinefunction(getattr(played.environment, "step", None)):
        yield f"a step took {longest:.2g} seconds; those of a batch are awaited together, so the slowest one counts"
    elif longest > slow:
        yield (
            f"a step took {longest:.2g} seconds, and a batch takes that long one after the other: let environments act "
            "side by side with step_workers, workers='process' or `async def step`"
        )


def _in_repetition(checked: _Checked, first: _Played, second: _Played) -> Iterator[str]:
    """Whether the task and the actions alone decide what happens."""
    pair = checked.side_by_side(2)
    made = [played.environment for played in (first, second, *pair)]
    if len({id(environment) for environment in made}) < len(made):
        yield "make_environment returned the same object twice: each episode needs an environment of its own"
    turn = _first_difference(first, second)
    if turn is None:
        beside = _first_difference(first, pair[0]) or _first_difference(first, pair[1])
        if beside is not None:  # unless it was chance
            turn = next(filter(None, (_first_difference(first, checked.play()) for _ in range(4))), None)
        if beside is not None and turn is None:
            yield (
                f"an episode goes differently from {beside} on if another one is played beside it: environments share "
                "something that changes, such as an attribute of the class, a module's variable or a file"
            )
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
            "it depends on a generator without a seed, on a clock, on the order of a set, or on what other episodes did"
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
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        one, other = one.detach().cpu(), other.detach().cpu()
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


def _in_pickling(make_environment: Any, played: _Played) -> Iterator[str]:
    try:
        pickle.dumps(environment_maker(make_environment))
    except Exception as error:
        yield (
            f"make_environment cannot be sent to processes ({error}): for workers='process' give a class or function "
            "at the top of a module, or a functools.partial of one"
        )
    returned = [("reset", played.start), *((f"step of turn {n}", turn.result) for n, turn in enumerate(played.turns))]
    for place, result in returned:
        try:
            pickle.dumps(result)
        except Exception as error:
            yield f"{place}: what was returned cannot be sent between processes, for workers='process' ({error})"
            return
