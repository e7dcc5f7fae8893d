"""Environments that are awaited side by side, and environments in processes of their own."""

from __future__ import annotations

import asyncio
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.environment import worlds
from tests.environment.test_runner import runner
from tests.environment.worlds import AwaitedCountdown, Closing, Countdown, SlowToLoad
from tests.limits import HANG
from trl_step.environment.process_pool import RemoteError


def say(words: dict[str, str]) -> Any:
    """A model that says a word after a text that begins with a number, else "a"."""
    return lambda text: next((word for start, word in words.items() if text.removeprefix("<s>").startswith(start)), "a")


def play(kind: Any, words: dict[str, str], tasks: list[int], **options: Any) -> Any:
    run = runner(kind, "a", **options)
    run.writer.sampler.model.answer = say(words)
    return run, lambda: run.run(tasks)


# --- awaited ---------------------------------------------------------------------------------------------------------


def test_coroutines_are_awaited_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AwaitedCountdown, "together", 3)
    monkeypatch.setattr(AwaitedCountdown, "here", 0)
    _, run = play(AwaitedCountdown, {}, [2, 2, 2])
    episodes = run()
    assert episodes.errors == [None] * 3
    assert [history.text for history in episodes.histories] == ["2 left:a</s>[1 left]a</s>"] * 3


def test_a_late_coroutine_ends_its_own_episode_and_errors_have_their_line() -> None:
    _, run = play(AwaitedCountdown, {"7": "hang", "5": "raise"}, [1, 7, 5, 1], step_timeout=0.5)
    with pytest.warns(UserWarning, match="2 of 4 episodes ended early"):
        errors = run().errors
    assert errors[0] is errors[3] is None
    assert errors[1] == "turn 0: no reply within 0.5 seconds"
    assert str(errors[2]).startswith(f"turn 0: KeyError: 'boom' ({worlds.__file__}:")
    _, run = play(AwaitedCountdown, {"5": "raise"}, [5], strict=True)
    with pytest.raises(KeyError, match="boom"):
        run()


def test_coroutines_inside_of_a_running_loop() -> None:
    """As in a notebook."""
    _, run = play(AwaitedCountdown, {}, [1])

    async def cell() -> Any:
        return run()

    assert asyncio.run(cell()).errors == [None]


def test_environments_are_closed() -> None:
    closed = []

    class Closing(Countdown):
        def close(self) -> None:
            closed.append(self)

    class ClosingLater(Countdown):
        async def close(self) -> None:
            closed.append(self)

    class Failing(Countdown):
        def close(self) -> None:
            raise OSError("no such display")

    for kind in (Closing, ClosingLater):
        closed.clear()
        play(kind, {}, [1, 2])[1]()
        assert len(set(map(id, closed))) == 2
    with pytest.warns(UserWarning, match="1 environments could not be closed: OSError: no such display"):
        play(Failing, {}, [1])[1]()


LATE = "task 1: `reset`: no reply within 1 seconds{}. See what it waits for, or raise step_timeout"


def test_a_late_reset_ends_the_run() -> None:
    for kind, workers in ((AwaitedCountdown, 0), (Countdown, 3)):
        run = runner(kind, "a", step_workers=workers, step_timeout=1.0)
        with pytest.raises(TimeoutError, match=re.escape(LATE.format(""))):
            run.run([1, "hang", 1])
        assert run.run([1, 2]).errors == [None] * 2


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pooled() -> Any:
    """A runner whose processes serve several tests, as a server that forks them takes seconds to start."""
    run = runner(Countdown, "a", workers="process", step_timeout=60)
    yield run
    run.close()


def test_processes_play_as_threads_do(pooled: Any) -> None:
    pooled.writer.sampler.model.answer = say({})
    episodes, again = pooled.run([2, 1]), pooled.run([1, 2, 1])
    plain = play(Countdown, {}, [2, 1])[1]()
    assert [history.text for history in episodes.histories] == [history.text for history in plain.histories]
    assert episodes.turn_rewards == plain.turn_rewards
    pids = {infos[0]["process"] for infos in episodes.infos}
    assert len(pids) == 2
    assert os.getpid() not in pids
    more = {infos[0]["process"] for infos in again.infos}
    assert len(more) == 3
    assert pids < more, "a process is used again"


def test_the_death_of_a_process_ends_its_own_episode(pooled: Any) -> None:
    pooled.writer.sampler.model.answer = say({"3": "die", "5": "raise", "6": "file", "4": "what"})
    with pytest.warns(UserWarning, match="3 of 6 episodes ended early"):
        episodes = pooled.run([1, 3, 5, 6, 4, 2])
    assert episodes.errors[1] == "turn 0: its process died, exit code 7"
    assert str(episodes.errors[2]).startswith(f"turn 0: KeyError: 'boom' ({worlds.__file__}:")
    assert "turn 0: what the environment returned cannot be sent between processes" in str(episodes.errors[3])
    assert episodes.errors[0] is episodes.errors[4] is episodes.errors[5] is None
    assert "say it again:" in episodes.histories[4].text
    assert episodes.turn_rewards[4][0] == -0.25
    pooled.writer.sampler.model.answer = say({})
    assert pooled.run([1] * 6).errors == [None] * 6, "new processes take the place of dead ones"


def test_a_late_process_is_ended(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled.writer.sampler.model.answer = say({"7": "hang"})
    environments = pooled.actors.create(2)
    pooled.actors.release(environments)
    for environment in environments:
        monkeypatch.setattr(environment, "timeout", 1.0)
    with pytest.warns(UserWarning, match="no reply within 1 seconds; its process was ended"):
        errors = pooled.run([7, 1]).errors
    assert errors[1] is None
    assert sum(environment.process.is_alive() for environment in environments) == 1


def test_a_late_reset_in_a_process_ends_the_run_and_the_process(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled.writer.sampler.model.answer = say({})
    environments = pooled.actors.create(3)
    pooled.actors.release(environments)
    for environment in environments:
        monkeypatch.setattr(environment, "timeout", 1.0)
    with pytest.raises(TimeoutError, match=re.escape(LATE.format("; its process was ended"))):
        pooled.run([1, "hang", 1])
    assert sum(environment.process.is_alive() for environment in environments) == 2
    monkeypatch.undo()
    assert pooled.run([1] * 3).errors == [None] * 3


def test_the_start_of_a_process_does_not_count() -> None:
    """It imports what the environment needs, here for longer than a reset may take."""
    run = runner(SlowToLoad(), "a", workers="process", step_timeout=1.0)
    assert run.run([1]).errors == [None]
    run.close()


def test_a_process_that_was_interrupted_is_not_used_again(pooled: Any) -> None:
    """Its next answer would be the one that nobody waited for: every later episode would be a step behind."""
    pooled.writer.sampler.model.answer = say({str(os.getpid()): "interrupt"})
    with pytest.raises(KeyboardInterrupt):
        pooled.run([os.getpid()])
    again = pooled.run([2, 1, 2])
    assert [history.text for history in again.histories] == ["2 left:a</s>[1 left]a</s>", "1 left:a</s>"] + [
        "2 left:a</s>[1 left]a</s>"
    ]
    assert again.errors == [None] * 3


def test_strict_raises_what_the_process_raised(pooled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooled, "strict", True)
    pooled.writer.sampler.model.answer = say({"5": "raise", "3": "die"})
    with pytest.raises(KeyError, match="boom") as raised:
        pooled.run([5])
    assert "the line that reports must name" in str(raised.value.__cause__)
    with pytest.raises(RemoteError, match="its process died, exit code 7"):
        pooled.run([3])
    with pytest.raises(ValueError, match="invalid literal"):
        pooled.run(["x"])  # in reset


def closed_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def closing(tmp_path: Path) -> Any:
    run = runner(partial(Closing, tmp_path), "a", workers="process", max_turns=8)
    yield run
    run.close()


def test_environments_in_processes_are_closed_after_their_episodes(tmp_path: Path, closing: Any) -> None:
    closing.run([1, 2])
    assert closed_in(tmp_path) == {"1", "2"}
    closing.writer.sampler.model.answer = say({"3": "die"})
    with pytest.warns(UserWarning, match="could not be closed") as told:
        closing.run([3, 4, 5])
    assert closed_in(tmp_path) == {"1", "2", "4"}
    about_close = [str(warning.message) for warning in told if "could not be closed" in str(warning.message)]
    assert len(about_close) == 1
    assert about_close[0].startswith("1 environments could not be closed: OSError: no such display ("), (
        "that the other one died is said of its episode"
    )


def test_environments_in_processes_are_closed_if_the_run_breaks_off(tmp_path: Path, closing: Any) -> None:
    def broken(text: str) -> str:
        raise RuntimeError("out of memory")

    closing.writer.sampler.model.answer = broken
    with pytest.raises(RuntimeError, match="out of memory"):
        closing.run([1, 2])
    assert closed_in(tmp_path) == {"1", "2"}


def test_a_close_that_hangs_in_a_process_is_ended(
    tmp_path: Path, closing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = closing.actors.create(2)
    closing.actors.reset(environments, [7, 1])
    monkeypatch.setattr(environments[0], "timeout", 0.5)
    with pytest.warns(UserWarning, match="1 environments could not be closed: no reply within 0.5 seconds; its proc"):
        closing.actors.release(environments)
    assert [environment.process.is_alive() for environment in environments] == [False, True]
    assert closed_in(tmp_path) == {"1"}


def test_an_environment_whose_program_is_gone_is_closed(tmp_path: Path, closing: Any) -> None:
    """Its process sees the end of the connection, as after a program that was killed."""
    (environment,) = closing.actors.create(1)
    closing.actors.reset([environment], [1])
    environment._connection.close()
    environment.process.join(HANG)
    assert environment.process.exitcode == 0
    assert closed_in(tmp_path) == {"1"}


def test_what_cannot_be_sent_is_said_at_once() -> None:
    with pytest.raises(TypeError, match="a class or function at the top of a module"):
        runner(lambda: Countdown(), workers="process")
    with pytest.raises(ValueError, match="workers='cloud' must be"):
        runner(Countdown, workers="cloud")
    runner(partial(Countdown), workers="process")
