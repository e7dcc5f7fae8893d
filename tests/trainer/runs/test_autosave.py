"""States that are saved by themselves, and what an interrupt does to a run."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.limits import HANG
from tests.tiny import batch, trainer
from tests.trainer.runs import resumed_runs
from tests.trainer.runs.resumed_runs import CASES, build, outcome, train
from tests.trainer.runs.state_tools import changed
from trl_step.trainer.runs import autosave
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs.folder import checked, folder_of_step


@pytest.fixture(autouse=True)
def handler() -> Iterator[Any]:
    """Python's own handler of the interrupt, which every test has to leave in place."""
    own = signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is own
    yield own
    after = signal.signal(signal.SIGINT, own)
    assert after is own


def saving(folder: Path, **options: Any) -> Any:
    return trainer("gpt2", save_dir=str(folder), **{"save_every": 1, **options})


def states(folder: Path) -> list[str]:
    return sorted(path.name.lstrip("step-0") for path in folder.iterdir() if checked(path))


def interrupt(*_: Any) -> None:
    signal.raise_signal(signal.SIGINT)


def test_every_second_step_is_saved_and_the_last_two_are_kept(tmp_path: Path) -> None:
    ours = saving(tmp_path, save_every=2, keep_last=2)
    for _ in range(7):
        ours.step(*batch())
    assert states(tmp_path) == ["4", "6"]
    again = saving(tmp_path)
    assert again.load_state("latest") == 6
    again.step(*batch())
    assert changed(outcome_of(ours), outcome_of(again)) == []


def test_a_run_that_begins_anew_in_the_folder_of_another_one_says_so(tmp_path: Path) -> None:
    """It replaces the other one's states, and removes them with `keep_last`."""
    first = saving(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="save_dir=.* has states of another run")
        for _ in range(2):
            first.step(*batch())
        again = saving(tmp_path)
        again.load_state("latest")
        again.step(*batch())
    anew = saving(tmp_path)
    with pytest.warns(UserWarning, match=r"has states of another run, the last one in step-0*3, and this run replaces"):
        anew.step(*batch())


def outcome_of(ours: Any) -> dict[str, Any]:
    return resumed_runs.everything(ours)


def test_all_are_kept_unless_asked_for(tmp_path: Path) -> None:
    ours = saving(tmp_path)
    for _ in range(3):
        ours.step(*batch())
    assert states(tmp_path) == ["1", "2", "3"]


@pytest.mark.parametrize("name", ["plain", "everything"])
@pytest.mark.parametrize("where", ["beginning", "end"])
def test_an_interrupted_run_goes_on_where_it_was(
    where: str, name: str, tmp_path: Path, handler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning or at the end of the third step, which finishes."""
    case = CASES[name]
    whole = build(case)
    seen = train(whole, case)
    interrupted = build(case, save_every=100, save_dir=str(tmp_path))
    if where == "end":
        interrupted.on_step(lambda report: report.step == 3 and interrupt())
    else:
        inputs = interrupted.prepare_model_inputs
        monkeypatch.setattr(
            interrupted,
            "prepare_model_inputs",
            lambda *queries: (interrupted.steps_done == 2 and interrupt(), inputs(*queries))[1],
        )
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(interrupted, case)
    assert str(stopped.value) == (
        f'step 3 is saved: build the trainer with save_dir={str(tmp_path)!r}, then trainer.load_state("latest")'
    )
    assert signal.getsignal(signal.SIGINT) is handler
    assert states(tmp_path) == ["3"]
    resumed = build(case, save_every=100, save_dir=str(tmp_path))
    assert resumed.load_state("latest") == 3
    assert train(resumed, case) == seen[3:]
    assert changed(outcome(whole), outcome(resumed)) == []


def test_the_handler_is_in_place_during_a_step_and_no_longer(tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path, save_every=100)
    seen = []
    ours.on_step(lambda _: seen.append(signal.getsignal(signal.SIGINT)))
    for _ in range(2):
        ours.step(*batch())
        assert signal.getsignal(signal.SIGINT) is handler
    assert handler not in seen


def test_between_two_steps_an_interrupt_is_pythons_own(tmp_path: Path) -> None:
    ours = saving(tmp_path, save_every=2)
    for _ in range(3):
        ours.step(*batch())
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert states(tmp_path) == ["2"]


def test_an_interrupted_step_that_is_saved_anyway_is_saved_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = saving(tmp_path)
    written, write = [], state_folder.write
    monkeypatch.setattr(state_folder, "write", lambda *state: (written.append(state[0].name), write(*state)))
    ours.on_step(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ours.step(*batch())
    assert written == ["step-00000001"]


def test_an_interrupt_during_an_automatic_save_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = saving(tmp_path)
    write = state_folder.write
    monkeypatch.setattr(state_folder, "write", lambda *state: (interrupt(), write(*state)))
    with pytest.raises(KeyboardInterrupt):
        ours.step(*batch())
    assert states(tmp_path) == ["1"]


def test_a_second_interrupt_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = saving(tmp_path)
    reached = []

    def twice(_: Any) -> None:
        interrupt()
        reached.append("the second in the same second is the same")
        interrupt()
        monkeypatch.setattr(autosave, "PATIENCE", 0.0)
        interrupt()
        reached.append("never")

    ours.on_step(twice)
    with pytest.raises(KeyboardInterrupt):
        ours.step(*batch())
    assert reached == ["the second in the same second is the same"]
    assert not list(tmp_path.iterdir())


def test_a_step_that_fails_and_was_interrupted_saves_nothing(tmp_path: Path) -> None:
    ours = saving(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        interrupt()
        raise RuntimeError("in mid-step")

    ours.record_step_stats = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt) as raised:
        ours.step(*batch())
    assert isinstance(raised.value.__context__, RuntimeError)
    assert not list(tmp_path.iterdir())


def test_a_refused_step_puts_the_handler_back_and_saves_nothing(tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path)
    ours.step(*batch())
    ours.load_state(folder_of_step(tmp_path, 1))
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="empty"):
        ours.step([], [], [])
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (tmp_path / "step-00000001" / "manifest.json").exists()


def test_a_step_that_broke_off_after_an_update_leaves_nothing_to_be_saved(tmp_path: Path) -> None:
    ours = saving(tmp_path, save_every=100)
    ours.step(*batch())
    ours.record_step_stats = lambda **_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        ours.step(*batch())
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not list(tmp_path.iterdir())


def test_before_the_first_step_there_is_nothing_to_save(tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(ValueError, match="empty"):
        ours.step([], [], [])
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not list(tmp_path.iterdir())


def test_without_save_every_the_handler_is_left_alone(handler: Any) -> None:
    ours = trainer("gpt2")
    ours.on_step(lambda _: signal.getsignal(signal.SIGINT) is handler or pytest.fail("replaced"))
    ours.step(*batch())


def test_in_a_thread_states_are_saved_and_the_handler_is_left_alone(tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path)
    thread = threading.Thread(target=lambda: ours.step(*batch()))
    thread.start()
    thread.join(HANG)
    assert states(tmp_path) == ["1"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_handler_that_was_there_is_called(tmp_path: Path, handler: Any) -> None:
    called = []
    signal.signal(signal.SIGINT, lambda number, _: called.append((number, states(tmp_path))))
    own = signal.getsignal(signal.SIGINT)
    ours = saving(tmp_path, save_every=100)
    ours.on_step(interrupt)
    ours.step(*batch())
    assert called == [(signal.SIGINT, ["1"])]
    assert signal.getsignal(signal.SIGINT) is own
    signal.signal(signal.SIGINT, handler)


def test_who_ignores_interrupts_goes_on_ignoring_them(tmp_path: Path, handler: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ours = saving(tmp_path, save_every=100)
    ours.on_step(interrupt)
    ours.step(*batch())
    interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_handler_that_was_put_over_ours_stays(interrupted: bool, tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path, save_every=100)
    over: list[Any] = []

    def put_over(_: Any) -> None:
        below = signal.getsignal(signal.SIGINT)
        over.append(lambda *seen: below(*seen))
        signal.signal(signal.SIGINT, over[0])
        if interrupted:
            interrupt()

    ours.on_step(put_over)

    def interrupt_during_or_after() -> None:
        ours.step(*batch())
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        interrupt_during_or_after()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] * interrupted
    assert signal.getsignal(signal.SIGINT) is over[0]
    signal.signal(signal.SIGINT, handler)


def test_two_trainers_one_in_a_step_of_the_other_are_both_saved(tmp_path: Path) -> None:
    outer, inner = (saving(tmp_path / name, save_every=100) for name in "ab")
    inner.on_step(interrupt)
    outer.on_step(lambda _: inner.step(*batch()))
    with pytest.raises(KeyboardInterrupt):
        outer.step(*batch())
    assert [states(tmp_path / name) for name in "ab"] == [["1"], ["1"]]


def test_a_worker_that_is_forked_in_a_step_works_on_and_saves_nothing(tmp_path: Path) -> None:
    """Ctrl-C reaches it as well, and the step may need what it does."""
    ours = saving(tmp_path, save_every=100)
    ended = []

    def fork(_: Any) -> None:
        worker = os.fork()
        if worker == 0:
            interrupt()
            os._exit(7)
        ended.append(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))

    ours.on_step(fork)
    ours.step(*batch())
    assert ended == [7]
    assert not list(tmp_path.iterdir())


def test_a_trainer_that_is_gone_takes_its_handler_along(tmp_path: Path, handler: Any) -> None:
    ours = saving(tmp_path, save_every=100)
    ours.step(*batch())
    gone = weakref.ref(ours)
    del ours
    gc.collect()
    assert gone() is None
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_save_that_fails_does_not_lose_the_step(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ours = saving(tmp_path / "file")
    with pytest.warns(UserWarning, match=r"could not be saved to .*step-00000001 after step 1 and goes on: .*file"):
        stats = ours.step(*batch())
    assert "objective/kl" in stats
    ours.config.save_dir = str(tmp_path / "folder")
    ours.step(*batch())
    assert states(tmp_path / "folder") == ["2"]


def test_a_run_that_went_back_saves_its_steps_anew(tmp_path: Path) -> None:
    ours = saving(tmp_path, save_every=2)
    for _ in range(4):
        ours.step(*batch())
    ours.load_state(folder_of_step(tmp_path, 2))
    for _ in range(2):
        ours.step(*batch(seed=3))
    assert saving(tmp_path).load_state("latest") == 4
    again = saving(tmp_path)
    again.load_state(folder_of_step(tmp_path, 4))
    assert changed(outcome_of(ours), outcome_of(again)) == []
