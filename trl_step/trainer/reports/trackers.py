"""Writing a run to trackers: open them, and log one step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_step.algorithms.stats import PER_TOKEN, Stat, mean_and_std
from trl_step.models.notices import warn_user
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.reports.tracker_kinds import FLAT, Table, markdown_table, write
from trl_step.trainer.runs.counters import Counters

_PLAIN = (int, float, str, bool)


class Described(NamedTuple):
    """What a tracker is told when it is opened."""

    name: str
    """of the settings, for trackers that take nested ones"""
    settings: dict[str, Any]
    """the run's hyperparameters"""
    keys: Sequence[Stat]
    """what will be logged"""


class Trackers:
    """The trackers named in `config.log_with`, to be opened with the run's hyperparameters.

    Args:
        processes: the main one writes; their accelerator holds the trackers
        config: read at every call, so that a script may change `log_arrays` on the way
        counters: `current_step` is the number under which a step is logged
        described: see there
    """

    def __init__(self, processes: Processes, config: PPOConfig, counters: Counters, described: Described) -> None:
        self.processes = processes
        self.config = config
        self.counters = counters
        self.described = described
        self._failed: set[str] = set()
        self._missing: set[tuple[str, str]] = set()

    def open(self) -> None:
        """Open them."""
        if self.config.trackers:
            _open(self.processes.accelerator, self.config, self.described)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers and arrays under the number `step`, on the main process."""
        logs = {key: _plain(value) for key, value in values.items()}
        self._to_each(lambda tracker: write(tracker, logs, None, step, wandb_step=step), step)

    def log_step(self, stats: dict[str, Any], batch: dict[str, Any], rewards: Any, columns: tuple[str, ...]) -> None:
        """Log `stats`, the rewards of all processes, and a table of samples; see `PPOTrainer.log_stats`."""
        own = _reward_vector(rewards, self.processes.device)
        with_table = bool(self.config.trackers) and _has_columns(batch, columns)
        gathered = self._gather(own)
        table = {name: self._gather(list(batch[name])) for name in columns} if with_table else {}
        for name, column in table.items():
            if len(column) != len(gathered):
                raise ValueError(
                    f"log_stats: column {name!r} has {len(column)} entries, but there are {len(gathered)} rewards"
                )
        if not self.processes.is_main:
            return
        everyone = torch.tensor(gathered, dtype=torch.float32)
        mean, std = mean_and_std(everyone)
        # a step whose log was lost, because the process ended after its save, keeps its number
        step = self.counters.current_step = max(self.counters.current_step + 1, self.counters.steps_done)
        left_out = () if self.config.log_arrays else PER_TOKEN
        logs: dict[str, Any] = {
            **{key: _plain(value) for key, value in stats.items() if key not in left_out},
            "env/reward_mean": float(mean),
            "env/reward_std": float(std),
            "env/reward_dist": everyone.numpy(),
        }
        samples = Table([*table, "reward"], [*zip(*table.values(), gathered, strict=True)]) if table else None
        self._to_each(lambda tracker: write(tracker, logs, samples, step), step)

    def _to_each(self, write_to: Callable[[Any], list[str]], step: int) -> None:
        if not self.processes.is_main:
            return
        for tracker in self.processes.accelerator.trackers:
            try:
                self._say_what_is_missing(tracker.name, write_to(tracker))
            except Exception as error:  # the step is done; a server that is down must not end the run
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    warn_user(
                        f"step {step} could not be logged to {tracker.name}, and the run goes on; this is said once: "
                        f"{type(error).__name__}: {error}"
                    )

    def _say_what_is_missing(self, name: str, keys: list[str]) -> None:
        new = [key for key in keys if (name, key) not in self._missing]
        if new:
            self._missing.update((name, key) for key in new)
            warn_user(
                f"{name} has no place for {', '.join(new)}, so they are not logged to it; a second tracker in "
                "log_with shows them, such as tensorboard (this is said once)"
            )

    def _gather(self, column: Any) -> list[Any]:
        items = column.tolist() if isinstance(column, torch.Tensor) else column
        return gather_object(items) if self.processes.count > 1 else items


def _open(accelerator: Accelerator, config: PPOConfig, described: Described) -> None:
    stream = random.getstate()
    random.seed()  # mlflow, swanlab and trackio draw a run's name: after `seed` all runs would have the same
    try:
        accelerator.init_trackers(config.tracker_project_name, init_kwargs=config.tracker_kwargs)
    finally:
        random.setstate(stream)
    unopened = set(config.trackers) - {tracker.name for tracker in accelerator.trackers}
    if unopened:
        raise ImportError(
            f"accelerate did not open {', '.join(sorted(unopened))}: it looks for installed trackers when it is "
            "imported; if you installed the package after that, start Python anew"
        )
    settings = described.settings
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":  # takes scalars and texts only
            tracker.store_init_configuration({k: v for k, v in settings.items() if isinstance(v, _PLAIN)})
            if accelerator.is_main_process:
                keys = [(stat.key, stat.formula) for stat in described.keys]
                tracker.writer.add_text("keys", markdown_table(("key", "formula"), keys))
        else:
            tracker.store_init_configuration(settings if tracker.name in FLAT else {described.name: settings})


def _plain(value: Any) -> Any:
    """Tensors as NumPy arrays, those without dimensions and NumPy's numbers as Python's; the rest stays."""
    if not isinstance(value, torch.Tensor):
        return value.item() if isinstance(value, np.generic) else value
    value = value.detach().cpu()
    value = value.float() if value.dtype == torch.bfloat16 else value
    return value.item() if value.dim() == 0 else value.numpy()


def _has_columns(batch: dict[str, Any], columns: tuple[str, ...]) -> bool:
    """Whether a table can be made; a batch with none of the columns warns, one with some of them is an error."""
    missing = [name for name in columns if name not in batch]
    if missing and len(missing) < len(columns):
        raise ValueError(f"log_stats: columns {missing} are not in the batch, which has {sorted(batch)}")
    if missing:
        warn_user(f"log_stats: the batch has none of the columns {list(columns)}, so no table of samples is logged")
    return bool(columns) and not missing


def _reward_vector(rewards: Any, device: torch.device) -> torch.Tensor:
    """One number per sample [B]; a reward per token counts as the sum of the sample's."""
    if isinstance(rewards, torch.Tensor):
        return rewards.detach().float().flatten().to(device)
    totals = [float(torch.as_tensor(reward, dtype=torch.float32).sum()) for reward in rewards]
    return torch.tensor(totals, dtype=torch.float32, device=device)
