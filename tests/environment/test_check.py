"""`check_environment`: every fault that it names, and nothing of what is right."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import numpy as np
import pytest

from tests.environment.environment_tools import byte_tokenizer
from tests.environment.worlds import AwaitedCountdown, Corridor, Countdown
from tests.limits import HANG
from trl_step.environment import UnreadableAction, check_environment

TURN = itertools.count()
SHARED = Countdown()


class Fine(Countdown):
    def step(self, action_text: str) -> tuple[Any, float, bool, dict[str, Any]]:
        return super().step(action_text[:2])


def problems(kind: Any, **options: Any) -> list[str]:
    return check_environment(kind, options.pop("task", 3), **options)


def test_what_is_right_has_no_problems() -> None:
    assert problems(Fine, tokenizer=byte_tokenizer()) == []
    assert problems(AwaitedCountdown, actions=["a"]) == []
    assert problems(Corridor, to_text=str) == [], "Gymnasium's actions are drawn from its action space"
    assert problems("FrozenLake-v1", to_text=str) == []
    assert check_environment("FrozenLake-v1", to_text=str) == [], "without a task it is played with a seed"
    assert problems(Ends, to_text=str.upper) == [], "nobody sees the observation after the end"


class Ends(Countdown):
    def step(self, action_text: str) -> Any:
        return None, np.float32(1.0), np.bool_(True), None


def step_that(result: Any) -> Any:
    class Stepping(Countdown):
        def step(self, action_text: str) -> Any:
            found = result(self, action_text)
            if isinstance(found, Exception):
                raise found
            return found

    return Stepping


FAULTS: dict[str, tuple[Any, str]] = {
    "raises": (lambda s, a: {}["boom"], "step raised KeyError: 'boom' ("),
    "on odd text": (lambda s, a: (str(int(a)), 0.0, False, {}), "for the action 'yes'"),
    "three values": (lambda s, a: ("o", 1.0, False), "step returned ('o', 1.0, False); it must return"),
    "order": (lambda s, a: (1.0, "o", False, {}), "the reward is 'o'; it must be one finite number; the order is"),
    "NaN": (lambda s, a: ("o", float("nan"), False, {}), "turn 0: the reward is nan; it must be one finite number"),
    "done in words": (lambda s, a: ("o", 1.0, "no", {}), "done is 'no', a str; return True or False"),
    "truncated in words": (lambda s, a: ("o", 1.0, False, 0, {}), "truncated is 0, a int; return True or False"),
    "info": (lambda s, a: ("o", 1.0, False, ["i"]), "info is ['i'], a list; return a dictionary"),
    "a number to see": (lambda s, a: (7, 1.0, False, {}), "step of turn 0: the observation is a int, not a text"),
    "a list of a reward": (lambda s, a: ("o", [1.0], False, {}), "the reward is [1.0]; it must be one finite number"),
    "info and end": (lambda s, a: ("o", 1.0, ["i"], {}), "done is ['i'], a list; return True or False"),
    "not to be sent": (lambda s, a: ("o", 1.0, False, {"f": print, "g": lambda: 0}), "step of turn 0: what was return"),
    "a control token in a message": (
        lambda s, a: UnreadableAction("</s>") if a == "yes" else ("o", 1.0, False, {}),
        "step of turn 1: the observation holds the control token",
    ),
    "a control token": (lambda s, a: ("a</s>", 1.0, False, {}), "holds the control token '</s>'"),
    "slow": (
        lambda s, a: (time.sleep(0.02), ("o", 1.0, True, {}))[1],
        "and a batch takes that long one after the other",
    ),
    "global random numbers": (lambda s, a: (str(random.random()), 0.0, False, {}), "come from a global stream"),
    "a counter": (lambda s, a: (str(next(TURN)), 0.0, False, {}), "differ in turn 0, even with the same random"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    result, text = FAULTS[name]
    found = problems(step_that(result), tokenizer=byte_tokenizer(), slow=0.015 if name == "slow" else HANG)
    assert any(text in problem for problem in found), found
    others = [problem for problem in found if text not in problem and "sent to processes" not in problem]
    assert len(others) == (1 if name == "order" else 0), "the order is seen in the observation as well"


def test_faults_of_the_beginning() -> None:
    class Empty(Fine):
        def reset(self, task: Any) -> str:
            super().reset(task)
            return ""

    class Raising(Fine):
        def reset(self, task: Any) -> str:
            raise OSError("no display")

    def broken() -> Any:
        raise OSError("no display")

    def first(kind: Any) -> str:
        return problems(kind)[0]

    assert first(Empty) == "reset: the first observation is empty; the model needs some text to go on from"
    assert first(Raising).startswith("reset raised OSError: no display (")
    assert first(broken).startswith("make_environment raised OSError: no display (")
    assert "make_environment returned a object, which has no method `reset`" in first(object)
    assert any("returned the same object twice" in problem for problem in problems(lambda: SHARED))
    assert any("cannot be sent to processes" in problem for problem in problems(lambda: Fine()))

    def refuse(text: str) -> str:
        raise UnreadableAction("no")

    assert any("could read none of the actions" in problem for problem in problems(Fine, to_action=refuse))


@pytest.mark.parametrize("result", [("o", 1.0, 0, {}), ("o", 1.0, False, 3)])
def test_a_fault_of_every_turn_is_said_once(result: Any) -> None:
    found = problems(step_that(lambda s, a: result), turns=5)
    assert len([problem for problem in found if "sent to processes" not in problem]) == 1


CORE = Fine()


class Core:
    """Two of them are one."""

    def reset(self, task: Any) -> str:
        return CORE.reset(task)

    def step(self, action_text: str) -> Any:
        return CORE.step(action_text)


class OfTheClass(Fine):
    said: list[str] = []  # noqa: RUF012

    def reset(self, task: Any) -> str:
        self.said.clear()
        return super().reset(task)

    def step(self, action_text: str) -> Any:
        self.said.append(action_text)
        return " ".join(self.said), *super().step(action_text)[1:]


@pytest.mark.parametrize("kind", [Core, OfTheClass])
def test_environments_that_share_something_are_found(kind: Any) -> None:
    """One after the other they are right, as `reset` clears it; the runner plays them side by side."""
    (problem,) = problems(kind)
    assert problem.startswith("an episode goes differently from turn ")
    assert "environments share something that changes" in problem


def test_objects_that_are_used_again_are_found() -> None:
    two = itertools.cycle([Fine(), Fine()])
    assert any("returned the same object twice" in problem for problem in problems(lambda: next(two)))


def test_what_close_and_to_text_raise_is_said() -> None:
    class Closing(Fine):
        def close(self) -> None:
            raise OSError("no display")

    (problem,) = (problem for problem in problems(Closing) if "processes" not in problem)
    assert problem.startswith("close raised OSError: no display (")
    with pytest.raises(OSError, match="no display"):
        problems(Closing, strict=True)
    for text, place in (("3 left:", "the first observation"), ("[2 left]", "the observation of turn 0")):
        to_text = lambda seen, text=text: {}[seen] if seen == text else seen  # noqa: E731
        (problem,) = (problem for problem in problems(Fine, to_text=to_text) if "processes" not in problem)
        assert problem.startswith(f"to_text raised KeyError: '{text}' (")
        assert problem.endswith(f" for {place}")
        with pytest.raises(KeyError):
            problems(Fine, to_text=to_text, strict=True)


def test_time_of_the_beginning_and_of_what_is_awaited() -> None:
    class SlowBeginning(Fine):
        def reset(self, task: Any) -> str:
            time.sleep(0.02)
            return super().reset(task)

    class SlowAwaited(AwaitedCountdown):
        async def step(self, action_text: str) -> Any:  # type: ignore[override]
            time.sleep(0.02)
            return await super().step(action_text)

    assert any("and its first observation took 0.0" in problem for problem in problems(SlowBeginning, slow=0.015))
    assert any("are awaited together, so the slowest" in problem for problem in problems(SlowAwaited, slow=0.015))
    assert not any("`async def step`" in problem for problem in problems(SlowAwaited, slow=0.015))


def test_what_cannot_be_checked_is_refused() -> None:
    for actions in ((), "abc"):
        with pytest.raises(ValueError, match="give a list of texts that the model could write"):
            problems(Fine, actions=actions)
    with pytest.raises(ValueError, match="turns=0 must be a whole number"):
        problems(Fine, turns=0)


def test_strict_raises_what_was_raised() -> None:
    with pytest.raises(KeyError, match="boom") as raised:
        problems(Countdown, actions=["raise"], strict=True)
    assert raised.traceback[-1].name == "step"


def test_random_streams_are_left_alone() -> None:
    random.seed(3)
    expected = random.random()
    random.seed(3)
    problems(step_that(lambda s, a: (str(next(TURN)), 0.0, False, {})))
    assert random.random() == expected
