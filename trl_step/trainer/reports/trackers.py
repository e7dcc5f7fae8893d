"""Writing a run to trackers: open them, and log one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from trl_step.algorithms.stats import PER_TOKEN, Stat, mean_and_std
from trl_step.models.notices import warn_user
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
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

    def open(self) -> None:
        """Open them."""
        if self.config.trackers:
            _open(self.processes.accelerator, self.config, self.described)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Log numbers under the number `step`, on the main process; wandb gets arrays, too."""
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        self._to_each(lambda tracker: tracker.log(values if tracker.name == "wandb" else numbers, step=step), step)

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
        self._to_each(lambda tracker: _write(tracker, logs, table, gathered, step), step)

    def _to_each(self, write: Callable[[Any], None], step: int) -> None:
        if not self.processes.is_main:
            return
        for tracker in self.processes.accelerator.trackers:
            try:
                write(tracker)
            except Exception as error:  # the step is done; a server that is down must not end the run
                if tracker.name not in self._failed:
                    self._failed.add(tracker.name)
                    warn_user(
                        f"step {step} could not be logged to {tracker.name}, and the run goes on; this is said once: "
                        f"{type(error).__name__}: {error}"
                    )

    def _gather(self, column: Any) -> list[Any]:
        items = column.tolist() if isinstance(column, torch.Tensor) else column
        return gather_object(items) if self.processes.count > 1 else items


def _open(accelerator: Accelerator, config: PPOConfig, described: Described) -> None:
    accelerator.init_trackers(config.tracker_project_name, init_kwargs=config.tracker_kwargs)
    settings = described.settings
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":  # takes scalars and texts only
            tracker.store_init_configuration({k: v for k, v in settings.items() if isinstance(v, _PLAIN)})
            if accelerator.is_main_process:
                keys = [(stat.key, stat.formula) for stat in described.keys]
                tracker.writer.add_text("keys", _markdown_table(("key", "formula"), keys))
        else:
            tracker.store_init_configuration({described.name: settings})


def _write(tracker: Any, logs: dict[str, Any], table: dict[str, list[Any]], rewards: list[float], step: int) -> None:
    if tracker.name == "wandb":
        tracker.log(logs | _wandb_table(table, rewards))
    else:
        tracker.log({k: v for k, v in logs.items() if isinstance(v, (int, float))}, step=step)
        _tensorboard_extras(tracker, logs, table, rewards, step)


def _plain(value: Any) -> Any:
    """Tensors as NumPy arrays, those of one element as numbers; the rest stays."""
    if not isinstance(value, torch.Tensor):
        return value
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


def _wandb_table(table: dict[str, list[Any]], rewards: list[float]) -> dict[str, Any]:
    if not table:
        return {}
    import wandb

    rows = [list(row) for row in zip(*table.values(), rewards, strict=True)]
    return {"game_log": wandb.Table(columns=[*table, "reward"], rows=rows)}


def _tensorboard_extras(
    tracker: Any, logs: dict[str, Any], table: dict[str, list[Any]], rewards: list[float], step: int
) -> None:
    """Histograms of the arrays, and the table of samples as Markdown text."""
    if tracker.name != "tensorboard":
        return
    for key, value in logs.items():
        finite = value[np.isfinite(value)] if isinstance(value, np.ndarray) else ()
        if len(finite):
            tracker.writer.add_histogram(key, finite, step)
    if table:
        rows = zip(*table.values(), (f"{reward:.3f}" for reward in rewards), strict=True)
        tracker.writer.add_text("game_log", _markdown_table((*table, "reward"), rows), step)


def _markdown_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    names = list(header)
    lines = [names, ["---"] * len(names), *(map(_markdown_cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
