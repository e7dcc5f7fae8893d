"""`StepTrainer`: what trainers with a `step` share, whatever they train."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch

from trl_step.algorithms.stats import LOGGED_BY_LOG_STATS, STATS, Stat
from trl_step.core import set_seed
from trl_step.trainer.base import BaseTrainer
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.accelerate_state import start_accelerator
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.reports import hub
from trl_step.trainer.reports.callbacks import Callback, configured_callbacks
from trl_step.trainer.reports.hub import BestScore
from trl_step.trainer.reports.trackers import Described, Trackers
from trl_step.trainer.runs.autosave import AutoSave
from trl_step.trainer.runs.counters import Counters
from trl_step.trainer.runs.identity import default_settings
from trl_step.trainer.runs.state import RunState


class StepTrainer(BaseTrainer):
    """Processes, counters, logs, callbacks, saved states and pushes of a trainer. It knows no model and no tokenizer.

    A subclass builds what it trains, has `step`, and writes its policy in `_save_pretrained`. One of release 0.7 may
    have a constructor that never calls this one, and sets what that release's set; the rest is made on first use.

    Args:
        config: settings
        settings: the same as the parts of a trainer read them, if `config` is of another class than `PPOConfig`. Their
            run-time fields (`world_size`, ...) are filled in

    Attributes:
        model_lock: held while a method trains or samples; hold it where another thread uses the model
    """

    _tracked_as = "trl_ppo_trainer_config"
    """name of the settings in trackers with nested ones"""
    _tracked_keys: tuple[Stat, ...] = (*STATS, *LOGGED_BY_LOG_STATS)
    """what is logged, for trackers that can explain it"""

    def __init__(self, config: Any, settings: Optional[PPOConfig] = None) -> None:
        super().__init__(config)
        if settings is not None:
            self._settings = settings
        _ = self.model_lock  # before a second thread could ask for it
        if config.seed is not None:
            set_seed(config.seed)
        self.accelerator = start_accelerator(self._settings)
        self.current_device = self.accelerator.device
        self.is_distributed = self.accelerator.num_processes > 1
        self._trackers.open()

    # --- made on first use ---------------------------------------------------------------------------------------

    @cached_property
    def model_lock(self) -> Any:
        """Held while a method trains or samples; hold it where another thread uses the model."""
        return threading.RLock()

    @cached_property
    def _settings(self) -> Any:
        return self.config

    @cached_property
    def _processes(self) -> Processes:
        return Processes(self.accelerator)

    @cached_property
    def _counters(self) -> Counters:
        return Counters()

    @cached_property
    def _trackers(self) -> Trackers:
        described = Described(self._tracked_as, self.config.to_dict(), self._tracked_keys)
        return Trackers(self._processes, self._settings, self._counters, described)

    @cached_property
    def _callbacks(self) -> list[Callback]:
        return configured_callbacks(self._settings)

    @cached_property
    def _failed_callbacks(self) -> set[int]:
        return set()

    @cached_property
    def _best(self) -> BestScore:
        return BestScore()

    @cached_property
    def _run_state(self) -> RunState:
        defaults = default_settings(self.config)
        return RunState(self._processes, self._parts, self._identity, self._settings, defaults)

    @cached_property
    def _autosave(self) -> AutoSave:
        return AutoSave(self._run_state, self._processes, self._counters, self._settings)

    def _parts(self) -> dict[str, Any]:
        """What the next step depends on, by name, as it is now; see `runs.state.RunState`."""
        best = self._best if self._settings.push_to_hub_if_best_kwargs else None
        return {"counters": self._counters, "best": best, "scaler": self.accelerator.scaler}

    def _identity(self) -> dict[str, Any]:
        """What must be the same if a saved run is loaded; see `runs.identity.identity`."""
        raise NotImplementedError(f"{type(self).__name__} must implement _identity")

    def _start_run(self) -> None:
        """The last act of a subclass's constructor: from here on the run can be saved."""
        _ = self._autosave  # which refuses a run that cannot be saved

    @property
    def steps_done(self) -> int:
        """Calls of `step` that made an update, those before `load_state` included."""
        return self._counters.steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._counters.steps_done = steps

    @property
    def current_step(self) -> int:
        """The number of the last step that `log_stats` logged."""
        return self._counters.current_step

    @current_step.setter
    def current_step(self, step: int) -> None:
        self._counters.current_step = step

    # --- reports -------------------------------------------------------------------------------------------------

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: Union[Sequence[Any], torch.Tensor, np.ndarray],
        columns_to_log: Iterable[str] = ("query", "response"),
    ) -> None:
        """Write a step's statistics, the rewards, and a table of samples to the tracker.

        Args:
            stats: what `step` returned
            batch: columns, each with one entry per sample
            rewards: one per sample; of a vector with one per token the sum is logged
            columns_to_log: columns of `batch` that the sample table shows

        Raises:
            ValueError: a column that `batch` does not have, or one of another length than the rewards.
        """
        self._trackers.log_step(stats, batch, rewards, tuple(columns_to_log))

    def on_step(self, callback: Callback) -> Callback:
        """Call `callback` with a `StepReport` after every step from now on, on every process; returns the callback.

        An error that it raises becomes a warning: the step is done, and stays so.
        """
        self._callbacks.append(callback)
        return callback

    # --- saving --------------------------------------------------------------------------------------------------

    def create_model_card(self, path: str, model_name: Optional[str] = "TRL Model") -> None:
        """Write README.md into `path`: what the model is and how to load it. Needs no network."""
        hub.write_model_card(path, model_name or "TRL Model", self.config)

    def _save_pretrained(self, save_directory: str) -> None:
        """Write the policy into a folder; every process calls it, and the main one writes."""
        raise NotImplementedError(f"{type(self).__name__} must implement _save_pretrained")

    def save_pretrained(
        self, save_directory: str, push_to_hub: bool = False, repo_id: Optional[str] = None, **push_kwargs: Any
    ) -> None:
        """Save policy, value head, tokenizer and model card; `push_to_hub=True` and `repo_id` push them as well."""
        hub.save(self._processes, self._save_pretrained, str(save_directory))
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **push_kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes; the address of the commit. `kwargs`: see `hub.push`."""
        return hub.push(self._processes, self._save_pretrained, repo_id, **kwargs)

    def _push_if_best(self, scores: torch.Tensor) -> None:
        """With `push_to_hub_if_best_kwargs`, push the policy if the mean of `scores` [B] over all processes is the best
        so far."""
        wanted = self._settings.push_to_hub_if_best_kwargs
        if wanted and self._best.sees(scores, self._processes, self._settings.compare_steps):
            hub.push_without_failing(self.push_to_hub, **wanted)

    def save_state(self, folder: Optional[Union[str, Path]] = None) -> None:
        """Write all that the next step depends on into `folder`, for `load_state`; every process calls it.

        Without a folder, a class that is a `transformers.Trainer` as well saves that trainer's state, as its own
        `save_state()` does.

        Policy and value head (of a PEFT model all but the frozen base weights), optimizer, scheduler, KL coefficient,
        running score moments, random streams, counters, the place in `trainer.dataloader`, and the best score so far.
        The reference is not in it. Files are safetensors and JSON, and a state that is already in `folder` stays
        until the new one is complete on the disk.

        Raises:
            ValueError: there is no folder.
            TypeError: the optimizer or scheduler keeps something that these formats do not hold.
            OSError: the files could not be written; `folder` is as it was.
        """
        if folder is not None:
            self._run_state.save(Path(folder))
            return
        of_other_base = getattr(super(), "save_state", None)
        if of_other_base is None:
            raise ValueError("save_state needs a folder; with config.save_dir and save_every, step saves by itself")
        of_other_base()

    def load_state(self, folder: Union[str, Path], *, may_differ: Sequence[str] = ()) -> int:
        """Go on, bit for bit on a CPU, from what `save_state` wrote; every process calls it.

        Build the trainer as it was built for the run that was saved, then call this before the loop. The next pass
        over `trainer.dataloader` is the rest of the one that had begun.

        Args:
            folder: of the state; "latest" takes the newest complete state in `config.save_dir`, and does nothing if
                there is none yet
            may_differ: names of settings that were changed on purpose, such as ("cliprange",); what is in force is
                `config`, but for the learning rate: that is the optimizer's and comes with the state

        Returns:
            the steps that the run has made, 0 if there was no state

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the state is incomplete or damaged, or it is of a run of another model, optimizer, data set,
                configuration or number of processes. All differences are named, and nothing was changed.
        """
        steps = self._run_state.load(folder, may_differ)
        self._autosave.forget()
        self._forget()
        return steps

    def _forget(self) -> None:
        """A state was loaded: what is known of the weights before it is no longer true."""
