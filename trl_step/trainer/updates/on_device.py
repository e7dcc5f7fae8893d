"""Updates whose verdicts stay on the device: the host never waits to learn whether a mini-batch is skipped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator

from trl_step.algorithms.losses.tokens import mean_over
from trl_step.models.notices import warn_user
from trl_step.models.sharding import is_sharded
from trl_step.private_names import leaves_steps_out
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.updates.updater import Updater, loss_error, without_losses


def may_decide_on_device(accelerator: Accelerator, model: Any, optimizer: Any, config: PPOConfig) -> bool:
    """Whether `OnDeviceUpdater` can do what is asked.

    The optimizer must know how to leave a step out (torch's fused ones do, for gradient scaling in float16). Processes
    that accumulate or share weights must agree on the host, as they exchange sums of gradients. A verdict is on one
    device, so all weights must be on it.
    """
    policy = accelerator.unwrap_model(model)
    if is_sharded(policy) or len({parameter.device for parameter in policy.parameters()}) > 1:
        return False
    alone = accelerator.num_processes == 1 or config.gradient_accumulation_steps == 1
    return leaves_steps_out(optimizer.optimizer) and alone and accelerator.scaler is None and not config.exact_v07


class OnDeviceUpdater(Updater):
    """An `Updater` that keeps its verdicts on the device: the host waits once in a step, not once in a mini-batch.

    A mini-batch that is skipped has its gradient replaced by 0; if a whole backward batch is skipped, the
    optimizer's `found_inf` leaves weights and state as they are. `finish` counts the skipped mini-batches, and raises
    if a loss was not finite; no update after such a loss reaches the weights.
    """

    def reset(self) -> None:
        super().reset()
        device = self.accelerator.device
        self._skips = torch.zeros((), device=device)
        self._broken = torch.zeros((), dtype=torch.bool, device=device)
        self._all_skipped = torch.ones((), dtype=torch.bool, device=device)

    @contextmanager
    def minibatch(self, weight: float, last: bool) -> Iterator[None]:
        """As `Updater.minibatch`; the gradients of earlier ones are held back, to be joined by `update`."""
        if self._has_gradient:
            self._hold()
        with super().minibatch(weight, last):
            yield

    def update(
        self, loss: torch.Tensor, statistics: dict[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """As `Updater.update`, but raises nothing; outside of `minibatch` the verdict is the host's."""
        if self._weight is None:
            return super().update(loss, statistics, mask)
        mean_ratio = mean_over(statistics["policy/ratio"], mask)
        skip, broken = (flags > 0 for flags in self._flags(loss.detach(), mean_ratio.detach()))
        self._broken = self._broken | (broken & ~skip)
        self._skips = self._skips + skip
        self._all_skipped = self._all_skipped & skip
        self.accumulate(loss)
        if self._has_gradient or not self._last:  # else the mini-batch is the whole update, which is left out
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(skip, 0.0)
        self._join_held(keep_new=True)
        self._has_gradient = True
        if self._last:
            self.step()
        return without_losses(statistics, skip)

    def _optimizer_step(self) -> None:
        if self._weight is None:
            super()._optimizer_step()
            return
        inner = self.optimizer.optimizer
        inner.found_inf, inner.grad_scale = (self._all_skipped | self._broken).float(), None
        try:
            self.optimizer.step()
        finally:
            del inner.found_inf, inner.grad_scale
        self._all_skipped = torch.ones_like(self._all_skipped)

    def finish(self) -> None:
        """As `Updater.finish`; the one place that waits for the device.

        Raises:
            ValueError: the loss of a mini-batch was not finite though its ratio was.
        """
        skips, broken = torch.stack((self._skips, self._broken.float())).tolist()
        self.skipped = int(skips)
        if broken:
            self._forget_gradients()
            raise loss_error("not finite", self.remedy)
        if skips:
            warn_user(
                f"the mean ratio of {self.skipped} mini-batches exceeds ratio_threshold="
                f"{self.config.ratio_threshold:g} (on this or another process): they are skipped"
            )
