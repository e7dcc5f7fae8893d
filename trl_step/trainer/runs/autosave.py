"""States that are saved by themselves: every so many steps, and when the run is interrupted.

With `save_every` an interrupt (Ctrl-C) loses no step. One that comes during a step lets the step finish; one that comes
between two steps takes effect at once on one process, and behind the next step on several, which have to save
together. Either way the state is that behind the last step, and `KeyboardInterrupt` is raised when it is on the disk.
A second Ctrl-C ends the run where it is.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs import state as run_state

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

PATIENCE = 1.0
"""Seconds in which further interrupts count as the same one: a launcher passes on what the terminal sent already."""


def saves_states(step: Callable[..., Any]) -> Callable[..., Any]:
    """Surrounds `PPOTrainer.step`."""

    @functools.wraps(step)
    def saving(trainer: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.config.save_every is None:
            return step(trainer, *args, **kwargs)
        with trainer._autosave.around_step(trainer):
            return step(trainer, *args, **kwargs)

    return saving


class AutoSave:
    """Saves the states of one trainer, and keeps an interrupt until the run can be saved.

    The handler of the interrupt is in place from the first step on, and only in the main thread; it is taken back when
    an interrupt was handed on, and when the trainer goes.
    """

    def __init__(self, trainer: PPOTrainer) -> None:
        """Raises ValueError where `save_every` is set, and the run cannot be saved."""
        if trainer.config.save_every is not None:
            run_state.check_optimizer(trainer)
        self._trainer = weakref.ref(trainer)
        self._process = os.getpid()
        self._busy = False
        """in a step or a save: an interrupt has to wait"""
        self._interrupted_at: float | None = None
        self._former: Any = None
        """the handler that was there before; None while ours is not in place"""
        self._behind_step: dict[str, Any] | None = None
        """the run behind its last step, see `run_state.collect`; nothing in it changes until the next one"""
        self._saved_steps: int | None = None
        weakref.finalize(trainer, self._take_back).atexit = False

    def forget(self) -> None:
        """The run is another one now: its last step is not known, and nothing of it is saved."""
        self._behind_step = self._saved_steps = None

    @contextmanager
    def around_step(self, trainer: PPOTrainer) -> Iterator[None]:
        """Lets an interrupt wait for the step's end, then saves the run if it is time."""
        self._put_in_place()
        former, updates = self._behind_step, trainer._updater.updates
        self._behind_step = None
        self._busy = True
        agreed = False
        try:
            yield
            agreed = self._after_step(trainer)
        except BaseException:
            if trainer._updater.updates == updates:  # refused: the run is still behind the step before
                self._behind_step = former
            raise
        finally:
            self._busy = False
            if agreed or (self._interrupted_at is not None and not trainer.is_distributed):
                self._save_and_hand_on(trainer)

    def _after_step(self, trainer: PPOTrainer) -> bool:
        """Whether an interrupt came on any of several processes; all of them have saved the run then."""
        agreed = False
        if trainer.is_distributed:
            agreed = bool(trainer._processes.max(int(self._interrupted_at is not None)))
        elif self._former is not None:
            self._behind_step = run_state.collect(trainer)
        if agreed or trainer.steps_done % trainer.config.save_every == 0:
            self._save(trainer)
        return agreed

    def _save(self, trainer: PPOTrainer) -> None:
        """Save the run behind its last step; a failure is told, as the run is worth more than its copy."""
        behind, config = self._behind_step, trainer.config
        steps = trainer.steps_done if behind is None else behind["run"]["steps_done"]
        if steps == self._saved_steps:
            return
        save_dir = Path(config.save_dir)
        folder = state_folder.folder_of_step(save_dir, steps)
        try:
            run_state.save(trainer, folder, behind)
            self._saved_steps = steps
            if config.keep_last is not None and trainer.accelerator.is_main_process:
                state_folder.prune(save_dir, config.keep_last)
        except Exception as error:
            warnings.warn(
                f"the run could not be saved to {folder} behind step {steps} and goes on: {error}",
                UserWarning,
                stacklevel=6,
            )

    # --- the interrupt ---------------------------------------------------------------------------------------

    def _put_in_place(self) -> None:
        if self._former is not None or threading.current_thread() is not threading.main_thread():
            return
        former = _still_there(signal.getsignal(signal.SIGINT))
        if former in (None, signal.SIG_IGN):  # another language's handler cannot be put back; ignored is ignored
            return
        self._former = former
        signal.signal(signal.SIGINT, self._interrupt)

    def _take_back(self) -> None:
        """Put the former handler back, unless someone put another one over ours."""
        self._behind_step = None
        in_main_thread = threading.current_thread() is threading.main_thread()
        if self._former is not None and in_main_thread and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, _still_there(self._former))
            self._former = None

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        trainer = self._trainer()
        if trainer is None or os.getpid() != self._process:  # the trainer is gone; a worker that was forked
            _hand_on(self._former)
        elif self._interrupted_at is not None:
            if time.monotonic() - self._interrupted_at > PATIENCE:
                self._stop()
        elif self._busy or trainer.is_distributed:
            self._interrupted_at = time.monotonic()
            with suppress(RuntimeError):  # the interrupt may have come in the middle of a write
                print("interrupted: the run is saved behind this step; once more ends it now", file=sys.stderr)
        else:
            self._interrupted_at = time.monotonic()
            self._save_and_hand_on(trainer)

    def _save_and_hand_on(self, trainer: PPOTrainer) -> None:
        if self._behind_step is not None:
            self._save(trainer)
        self._stop()

    def _stop(self) -> None:
        """Give the interrupt to the handler that was there before ours."""
        former, self._interrupted_at = self._former, None
        self._take_back()
        _hand_on(former)


def _still_there(handler: Any) -> Any:
    """The handler; of a trainer that is gone, the one below it."""
    owner = getattr(handler, "__self__", None)
    while isinstance(owner, AutoSave) and owner._trainer() is None:
        handler = owner._former
        owner = getattr(handler, "__self__", None)
    return handler


def _hand_on(former: Any) -> None:
    """As a rule `former` is Python's own handler, which raises `KeyboardInterrupt`."""
    if former == signal.SIG_DFL:  # the system's own, which ends the process
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    elif callable(former):
        former(signal.SIGINT, None)
    else:
        raise KeyboardInterrupt
