"""States that are saved by themselves: every so many steps, and when a step is interrupted.

With `save_every` an interrupt (Ctrl-C) that comes during a step lets the step finish; then the run is saved, and
`KeyboardInterrupt` is raised. On several processes an interrupt of any of them counts for all. A second Ctrl-C ends the
run where it is. Between two steps the interrupt is Python's own.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trl_step.models.notices import warn_user
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs.counters import Counters
from trl_step.trainer.runs.state import RunState

PATIENCE = 1.0
"""Seconds in which further interrupts count as the same one: a launcher passes on what the terminal sent already."""


class AutoSave:
    """A step says `with autosave:`; without `save_every` that does nothing.

    Args:
        state: of the run
        processes: that train together
        counters: of the run; `steps_done` has counted the step when it ends
        settings: `save_every`, `save_dir` and `keep_last`

    Raises:
        ValueError: `save_every` is set, and the run cannot be saved.
    """

    def __init__(self, state: RunState, processes: Processes, counters: Counters, settings: PPOConfig) -> None:
        if settings.save_every is not None:
            state.check_optimizer()
        self.state, self.processes, self.counters, self.settings = state, processes, counters, settings
        self._saved_steps: int | None = None
        self._interrupted_at: float | None = None
        self._former: Any = None
        """the handler that was there before the step; None if ours is not in place"""

    def forget(self) -> None:
        """The run is another one now: no step of it is saved."""
        self._saved_steps = None

    def __enter__(self) -> None:
        if self.settings.save_every is None:
            return
        if self.counters.steps_done == 0 and self.processes.is_main:
            self._warn_of_other_run()
        if threading.current_thread() is not threading.main_thread():
            return
        former = signal.getsignal(signal.SIGINT)
        if former in (None, signal.SIG_IGN):  # another language's handler cannot be put back; ignored is ignored
            return
        self._former = former
        signal.signal(signal.SIGINT, self._interrupt)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self.settings.save_every is None:
            return
        together = False
        try:
            if error is None:
                if self.counters.steps_done % self.settings.save_every == 0:
                    self._save()
                together = bool(self.processes.max(int(self._interrupted_at is not None)))
                if together:
                    self._save()
        finally:
            self._put_back()
        # several processes stop together: after an error this one waits for the end of the next step
        if together or (self._interrupted_at is not None and self.processes.count == 1):
            self._interrupted_at = None
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                raise KeyboardInterrupt(self._how_to_resume())
            signal.raise_signal(signal.SIGINT)

    def _warn_of_other_run(self) -> None:
        """A run that begins anew writes over states of one that ended, and removes them if few are kept."""
        there = state_folder.complete_states(Path(str(self.settings.save_dir)))
        if there:
            warn_user(
                f"save_dir={self.settings.save_dir!r} has states of another run, the last one in {there[-1].name}, and "
                'this run replaces them: to go on with that run call trainer.load_state("latest") before the first '
                "step, else take another folder"
            )

    def _how_to_resume(self) -> str:
        """The last line of the traceback."""
        steps, save_dir = self.counters.steps_done, self.settings.save_dir
        if steps != self._saved_steps:
            return f"step {steps} could not be saved"
        return f'step {steps} is saved: build the trainer with save_dir={save_dir!r}, then trainer.load_state("latest")'

    def _save(self) -> None:
        """Save the run unless it is saved already; a failure is a warning, as the run is worth more than its copy."""
        steps = self.counters.steps_done
        if steps == self._saved_steps:
            return
        save_dir = Path(str(self.settings.save_dir))
        folder = state_folder.folder_of_step(save_dir, steps)
        try:
            self.state.save(folder)
            self._saved_steps = steps
            if self.settings.keep_last is not None and self.processes.is_main:
                state_folder.prune(save_dir, self.settings.keep_last)
        except Exception as failure:
            warn_user(f"the run could not be saved to {folder} after step {steps} and goes on: {failure}")

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """The handler during a step."""
        if self._former is None:  # called after the step by a handler that was put over ours
            raise KeyboardInterrupt
        if self._interrupted_at is None:
            self._interrupted_at = time.monotonic()
            with suppress(RuntimeError):  # the interrupt may have come in the middle of a write
                print("interrupted: the run is saved after this step; once more ends it now", file=sys.stderr)
        elif time.monotonic() - self._interrupted_at > PATIENCE:
            self._interrupted_at = None
            self._put_back()
            signal.raise_signal(signal.SIGINT)

    def _put_back(self) -> None:
        """Put the former handler back, unless someone put another one over ours."""
        if self._former is not None and signal.getsignal(signal.SIGINT) == self._interrupt:
            signal.signal(signal.SIGINT, self._former)
        self._former = None
