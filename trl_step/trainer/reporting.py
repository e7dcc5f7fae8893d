"""What `PPOTrainer` tells of its steps: logs, callbacks, cost and diagnoses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from trl_step.algorithms.diagnosis import Checkup
from trl_step.trainer.reports import trackers
from trl_step.trainer.reports.callbacks import Callback
from trl_step.trainer.reports.cost import StepCost, cost_of


class ReportingMixin:
    """Methods of `PPOTrainer` that report; the attributes are those of `PPOTrainer`."""

    def log_stats(
        self,
        stats: dict[str, Any],
        batch: dict[str, Any],
        rewards: list[torch.Tensor],
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
        trackers.log_step(self, stats, batch, rewards, tuple(columns_to_log))

    def on_step(self, callback: Callback) -> Callback:
        """Call `callback` with a `StepReport` behind every step from now on, on every process; the callback itself.

        What it raises comes out of `step`, whose update is done by then.
        """
        self._callbacks.append(callback)
        return callback

    def step_cost(self) -> StepCost:
        """Arithmetic of the last step, and how far from the machine's limit it was.

        The machine's matrix rate is measured at the first call (a fraction of a second) and then remembered.

        Raises:
            ValueError: no step was made yet.
        """
        if self._last_step is None:
            raise ValueError("step_cost tells of the last step, but there was none; call step first")
        return cost_of(self._last_step, self.accelerator.unwrap_model(self.model), self.config.mini_batch_size)

    @property
    def checkup(self) -> Checkup:
        """What was found to be wrong in the steps so far; `trl_step.extras.doctor` reads it."""
        return self._sampling.checkup
