"""`check_environment`: every fault that it names, and nothing of what is right."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

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


def step_that(result: Any) -> Any:
    class Stepping(Countdown):
        def step(self, action_text: str) -> Any:
            return result(self, action_text)

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
    assert first(broken) == "make_environment raised OSError: no display"
    assert any("returned the same object twice" in problem for problem in problems(lambda: SHARED))
    assert any("cannot be sent to processes" in problem for problem in problems(lambda: Fine()))

    def refuse(text: str) -> str:
        raise UnreadableAction("no")

    assert any("could read none of the actions" in problem for problem in problems(Fine, to_action=refuse))


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
