"""One optimizer step: accumulate the gradients of mini-batches, decide which to skip, clip, step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from trl_step.algorithms.losses.tokens import mean_over
from trl_step.core import is_out_of_memory
from trl_step.models.critic import parameters_of_critic
from trl_step.models.notices import warn_user
from trl_step.models.sharding import is_sharded, release
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.updates import deepspeed

LEAST_SCALE = 1.0
"""A loss scale below it makes gradients smaller, which float16 has no use for."""


class Updater:
    """Owns the path from a mini-batch's loss to the weights.

    A mini-batch that is skipped leaves no trace: it adds no gradient, and if a whole backward batch is skipped the
    optimizer does not step, so weights and optimizer state stay bit-identical on every process.

    Args:
        processes: they agree on what is skipped; their accelerator runs the backward pass and clips
        model: the prepared policy
        optimizer: the prepared optimizer
        parameters: those of the policy that train; the gradient norm is taken over those that the optimizer holds. More
            may come by `add`
        config: read at every update, so that a script may change it on the way: `max_grad_norm`, the upper bound of
            that norm; `ratio_threshold`: a mini-batch whose mean ratio is above this, or is not a number, is skipped;
            `exact_v07`: do what release 0.7 did: a skipped mini-batch has a zero loss, and the optimizer steps on it
    """

    remedy = "the scores, values or returns are too large for float32: scale the scores (use_score_scaling, score_clip)"
    """what to do about a loss that is no finite number, for its message"""

    def __init__(
        self,
        processes: Processes,
        model: Any,
        optimizer: Any,
        parameters: list[torch.nn.Parameter],
        config: PPOConfig,
    ) -> None:
        self.processes = processes
        self.accelerator = processes.accelerator
        self.model = model
        self.optimizer = optimizer
        self.parameters = parameters
        self.config = config
        self.sharded = is_sharded(self.accelerator.unwrap_model(model))
        self._deepspeed = deepspeed.uses_deepspeed(self.accelerator)
        self.skipped = 0
        self.updates = 0
        """steps of the optimizer so far, those that a loss scaler left out included"""
        self._weight: float | None = None
        """of a mini-batch; None outside of `minibatch`, where the `step` of a subclass leaves it to accelerate"""
        self._has_gradient = False
        self._held: list[torch.Tensor | None] | None = None
        self._scale_before = self.loss_scale
        self._trained: set[int] | None = None
        self.parameters_of_critic = parameters_of_critic(self.accelerator.unwrap_model(model))

    @property
    def settled(self) -> bool:
        """Whether gradients are exchanged of the parameters that trained at the start, and of no others."""
        return self.processes.count > 1 or self.sharded or self._deepspeed

    def add(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Hold back, clip and clear the gradients of these too from now on."""
        known = {id(parameter) for parameter in self.parameters}
        self.parameters = [*self.parameters, *(p for p in parameters if id(p) not in known)]

    def train_only(self, parameters: Iterable[torch.nn.Parameter] | None) -> None:
        """From now on leave all other parameters as they are, whatever their gradients; None: train what the optimizer
        holds."""
        self._trained = None if parameters is None else {id(parameter) for parameter in parameters}

    @property
    def _last(self) -> bool:
        """Whether the optimizer steps after this mini-batch."""
        return bool(self.accelerator.sync_gradients)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass: 1, unless training runs in float16."""
        scaler = self.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    # --- a mini-batch --------------------------------------------------------------------------------------------

    @contextmanager
    def minibatch(self, weight: float, last: bool) -> Iterator[None]:
        """Surrounds forward and backward of one mini-batch.

        Args:
            weight: factor on the mini-batch's mean loss, so that the sum over a backward batch, and the mean over
                processes, is the loss that was asked for
            last: the optimizer steps after this one
        """
        self._weight = weight
        # a subclass's `train_minibatch` may step by itself: accelerate lets the optimizer do so after the last one
        self.accelerator.gradient_state.sync_gradients = last
        # processes exchange gradients only after the last mini-batch
        with nullcontext() if last else self.without_exchange():
            try:
                yield
            finally:
                self._weight = None
                self.accelerator.gradient_state.sync_gradients = True

    def without_exchange(self) -> AbstractContextManager[None]:
        """Inside, gradients stay on their process, to be exchanged after the last mini-batch.

        Of sharded weights they are exchanged each time: kept whole they would take the memory that sharding saves,
        and could not be taken back.
        """
        return nullcontext() if self.sharded else self.accelerator.no_sync(self.model)

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        """Surrounds a mini-batch whose parts run one by one: `accumulate` for all but the last, then `update`.

        The gradients of earlier mini-batches are held back meanwhile. An error gives them back and drops the new ones,
        so that the mini-batch can be tried again.
        """
        self._hold()
        try:
            yield
        except BaseException:
            self._join_held(keep_new=False)
            raise

    def update(
        self, loss: torch.Tensor, statistics: dict[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Add the gradient of `loss` (0-d, a mean over this process's tokens), unless the mini-batch is skipped, and
        step if it is time.

        Args:
            statistics: of the mini-batch, "policy/ratio" [b, T] among them
            mask: [b, T]

        Returns:
            the statistics; the losses of a skipped mini-batch are 0.

        Raises:
            ValueError: the loss is not finite though the ratio is; weights and optimizer are untouched.
        """
        mean_ratio = mean_over(statistics["policy/ratio"], mask)
        skip = self.verdict(loss.detach(), mean_ratio.detach())
        distributed = self.processes.count > 1 and not self.sharded
        if skip or distributed:  # processes exchange the sum, so it must be complete before the last backward
            self._join_held(keep_new=not skip)
        if skip:
            self.skipped += 1
            release(self.model)
            deepspeed.check_skip(self.accelerator, self.config)
            warn_user(
                f"a mini-batch's mean ratio {float(mean_ratio):.4g} exceeds "
                f"ratio_threshold={self.config.ratio_threshold:g} (on this or another process): it is skipped"
            )
        if self.config.exact_v07:
            self.accumulate(loss * 0.0 if skip else loss)
            self._has_gradient = True
        elif not skip:
            self.accumulate(loss)
            self._has_gradient = True
        elif self._last and self._has_gradient and distributed:
            # the processes still owe each other the earlier gradients; 0 times this loss could be NaN
            self.accumulate(torch.stack([(p * 0.0).sum() for p in self.parameters]).sum())
        self._join_held(keep_new=True)
        if self._last:
            self.step()
        return without_losses(statistics, torch.tensor(skip, device=loss.device))

    def accumulate(self, loss: torch.Tensor) -> None:
        """Add the gradient of `loss` (0-d), times the mini-batch's weight, to what is there."""
        try:
            # `Accelerator.backward` divides by a number of accumulation steps, which may differ from the weight
            factor = 1.0 if self._weight is None else self._weight * self.accelerator.gradient_accumulation_steps
            self.accelerator.backward(loss * factor)
        except (RuntimeError, MemoryError) as error:
            if self.processes.count > 1 and is_out_of_memory(error):
                # other processes may have this one's gradients already: the mini-batch cannot be tried again
                raise RuntimeError(
                    "no memory for the backward pass of several processes; set forward_tokens or mini_batch_size lower"
                ) from error
            raise

    def verdict(self, loss: torch.Tensor, mean_ratio: torch.Tensor) -> bool:
        """Whether a mini-batch is skipped, on all processes.

        Raises:
            ValueError: the loss is not finite though the ratio is.
        """
        if self.config.exact_v07:
            return bool(mean_ratio > self.config.ratio_threshold)
        some_skip, some_broken = (bool(flag) for flag in self._flags(loss, mean_ratio).tolist())
        if some_broken and not some_skip:
            self._forget_gradients()
            raise loss_error(float(loss), self.remedy)
        return some_skip

    def _flags(self, loss: torch.Tensor, mean_ratio: torch.Tensor) -> torch.Tensor:
        """[2] float32: on how many processes the ratio is too large, and the loss not finite though the ratio is."""
        skip = ~(mean_ratio <= self.config.ratio_threshold)  # a ratio that is not a number fails every comparison
        return self.processes.sum(torch.stack((skip, ~skip & ~torch.isfinite(loss))).to(torch.float32))

    def step(self) -> None:
        """Clip the gradients that are there, let the optimizer step on them, and clear them."""
        self._forget_outside()
        if self._has_gradient:
            try:
                if self.config.max_grad_norm is not None:
                    self._clip(self.config.max_grad_norm)
                self._optimizer_step()
            except BaseException:
                self._forget_scaling()
                raise
            self.updates += 1
        self.optimizer.zero_grad()
        self._has_gradient = False

    def _clip(self, most: float) -> None:
        """Scale the gradient to a norm of `most` at most; that of a separate critic by itself."""
        of_critic = self.parameters_of_critic
        own = [p for p in self.parameters if id(p) not in of_critic] if of_critic else self.parameters
        self.accelerator.clip_grad_norm_(own, most)  # takes the loss scaler's factor off all gradients
        if of_critic:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters if id(p) in of_critic], most)

    def _forget_outside(self) -> None:
        """Drop the gradients of parameters that are not in the optimizer, whose groups may change on the way, or that
        do not train in this step."""
        # differs from v0.7: they counted in the norm and were never cleared
        if self.config.exact_v07 or self._deepspeed:  # DeepSpeed's groups hold parameters of its own
            return
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        held = held if self._trained is None else held & self._trained
        for parameter in self.parameters:
            if id(parameter) not in held:
                parameter.grad = None

    def _optimizer_step(self) -> None:
        self.optimizer.step()

    # --- a step of the trainer -----------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget gradients that an interrupted step left there, and count skipped mini-batches from 0."""
        self._forget_gradients()
        if self.sharded:
            release(self.model)
        self.skipped = 0

    def finish(self) -> None:
        """Called after the last mini-batch of a step; warns if a loss scaler leaves out update after update."""
        scale = self.loss_scale
        if scale < LEAST_SCALE <= self._scale_before:
            warn_user(
                f"the loss scale fell to {scale:g}: in float16 the gradients overflow or are no numbers, update after "
                "update is left out, and nothing is learnt. Set "
                'accelerator_kwargs={"mixed_precision": "bf16"}, or "no"'
            )
        self._scale_before = scale

    # --- gradients -----------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        """Put the gradients of earlier mini-batches aside."""
        if self._held is not None:
            return
        self._held = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None

    def _join_held(self, keep_new: bool) -> None:
        """Join what was held back with the new gradients, or drop the new ones."""
        if self._held is None:
            return
        for parameter, held in zip(self.parameters, self._held, strict=True):
            new = parameter.grad if keep_new else None
            parameter.grad = held if new is None else new if held is None else held.add_(new)
        self._held = None

    def _forget_gradients(self) -> None:
        self.optimizer.zero_grad()
        self._forget_outside()
        self._has_gradient, self._held = False, None

    def _forget_scaling(self) -> None:
        """Undo what a loss scaler notes down between clipping and the end of an update, which did not come."""
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.update(scaler.get_scale())
            for name in ("grad_scale", "found_inf"):
                vars(self.optimizer.optimizer).pop(name, None)


def without_losses(statistics: dict[str, torch.Tensor], skipped: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of a mini-batch; if it was `skipped` (0-d bool) its losses count as 0."""
    return {
        key: value.masked_fill(skipped, 0.0) if key.startswith("loss/") else value for key, value in statistics.items()
    }


def loss_error(loss: float | str, remedy: str) -> ValueError:
    """What is raised for a `loss` that is no finite number."""
    return ValueError(f"the loss of a mini-batch is {loss}, before it could reach the weights; {remedy}")
