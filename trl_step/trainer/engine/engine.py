"""The two operations of a step: evaluate a batch, train on a mini-batch.

`FusedEngine` is fast: the output embedding sees response tokens only, the policy's gradient is formed while its
log-probs are, no logits are kept, and no column is padding only. `HookEngine` calls the methods of release 0.7 that a
subclass overrides. Which of the two is used for which operation is decided once a step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.algorithms.losses.tokens import weighted_sum
from trl_step.algorithms.objective import Objective
from trl_step.models.sharding import gathered
from trl_step.models.shortcuts.frozen_trunk import FrozenTrunk
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.trainer.batches.layout import Inputs
from trl_step.trainer.batches.rollout import Piece, Rollout, TokenPositions, upload
from trl_step.trainer.engine.forward import Slopes, TokenForward, TokenOutputs
from trl_step.trainer.engine.memory_budget import MemoryBudget
from trl_step.trainer.engine.models import Models
from trl_step.trainer.updates.updater import Updater

Stats = dict[str, torch.Tensor]
Around = Callable[[Piece], AbstractContextManager[None]]
"""what surrounds the forward pass of a piece"""


class Engine(NamedTuple):
    """How this step's batch is evaluated, and how its mini-batches are trained on."""

    evaluate: Callable[[Rollout], Rollout]
    train: Callable[[Rollout], Stats]


def _nothing_around(_: Piece) -> AbstractContextManager[None]:
    return nullcontext()


def _of_trunk(pass_of: Callable[..., AbstractContextManager[None]], piece: Piece) -> AbstractContextManager[None]:
    return pass_of(piece.samples, piece.columns, piece.row)


class FusedEngine(NamedTuple):
    """The fast path."""

    models: Models
    forward: TokenForward
    """how the models are asked"""
    budget: MemoryBudget
    """how many samples go through a model together"""
    autocast: Callable[[], AbstractContextManager[None]]
    """precision of the forward passes"""
    size: int
    """samples of a mini-batch"""

    # --- evaluate ------------------------------------------------------------------------------------------------

    def evaluate(self, rollout: Rollout, exact_divergence: bool = False, with_values: bool = True) -> Rollout:
        """The batch with the policy's log-probs and values and the reference's log-probs, on response tokens.

        What is there already is not computed again; `exact_divergence` needs both models all the same. The batch has no
        values unless `with_values`.
        """
        models = self.models
        policy, reference = models.unwrap(models.policy), models.unwrap(models.reference)
        size = self.forward.layout.predicted_ids(rollout.inputs).shape
        trunk = FrozenTrunk.of(policy.pretrained_model, reference.pretrained_model, models.as_reference, size)
        record, resume = _nothing_around, _nothing_around
        if trunk is not None:
            record, resume = (partial(_of_trunk, pass_of) for pass_of in (trunk.policy, trunk.reference))
        gather: Callable[[Any], AbstractContextManager[Any]] = gathered if models.sharded else nullcontext
        found: dict[str, Any] = {}
        modes = eval_mode(models.policy), eval_mode(models.reference)
        with torch.no_grad(), modes[0], modes[1], self.autocast(), self.forward.buffers.kept():
            if exact_divergence:
                with gather(policy), gather(reference):
                    found = self._side_by_side(rollout, record, resume, with_values)
            else:
                if rollout.old_logprobs is None or (with_values and rollout.old_values is None):
                    with gather(policy):
                        known = self.sweep(models.policy, rollout, record, with_values)
                        found["old_logprobs"], found["old_values"] = known
                if rollout.ref_logprobs is None:
                    with gather(reference), models.as_reference():
                        found["ref_logprobs"], _ = self.sweep(models.reference, rollout, resume)
        states = None if trunk is None else trunk.states
        rollout = rollout.known(rollout.mask, **found)._replace(trunk=trunk, trunk_states=states)
        return rollout if with_values else rollout._replace(old_values=None)

    @torch.no_grad()
    def sweep(
        self, model: Any, rollout: Rollout, around: Around = _nothing_around, with_values: bool = True
    ) -> tuple[torch.Tensor, Any]:
        """Log-probs and values of the counted tokens by `model`, both [B, T] float32, 0 elsewhere; None in place of the
        values of a model without them.

        Args:
            around: surrounds each pass, see `FrozenTrunk.policy`
            with_values: run a separate critic
        """
        logprobs = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        values = torch.zeros_like(logprobs)
        has_values = True

        def visit(piece: Piece) -> None:
            nonlocal has_values
            with around(piece), self.forward.sharing(model, piece):
                outputs = self.forward.counted(model, piece, with_values=with_values)
            piece.put(logprobs, outputs.logprobs)
            has_values = outputs.values is not None
            if has_values:
                piece.put(values, outputs.values)

        self._visit(rollout, visit)
        return logprobs, values if has_values else None

    @torch.no_grad()
    def values_after(self, rollout: Rollout) -> torch.Tensor:
        """The policy's value of the state after the last token of each sample, [B] float32.

        Raises:
            ValueError: the policy has no values.
        """
        models, found = self.models, torch.zeros(len(rollout.mask), device=rollout.mask.device)
        policy = models.unwrap(models.policy)

        def visit(piece: Piece) -> None:
            width = piece.columns.stop - piece.columns.start
            last = piece.batch.positions.occupied[-1][:, 1] - 1 - piece.columns.start
            rows = upload(np.arange(len(last)) * width + last, found.device)
            at_the_end = piece.counted._replace(in_inputs=rows)
            values = self.forward.states(policy, piece._replace(counted=at_the_end)).values
            if values is None:
                raise ValueError("the policy has no values: give it a value head, or the trainer a value_model")
            found[piece.samples] = values.float()

        gather: Callable[[Any], AbstractContextManager[Any]] = gathered if models.sharded else nullcontext
        with eval_mode(models.policy), self.autocast(), gather(policy):
            self._visit(rollout, visit)
        return found

    def _side_by_side(
        self, rollout: Rollout, record: Around, resume: Around, with_values: bool
    ) -> dict[str, torch.Tensor]:
        """Policy and reference piece by piece, for the exact divergence."""
        names = ("old_logprobs", "old_values", "ref_logprobs", "divergence")
        found = {name: torch.zeros(rollout.mask.shape, device=rollout.mask.device) for name in names}
        forward, models = self.forward, self.models

        def visit(piece: Piece) -> None:
            with record(piece), forward.sharing(models.policy, piece):
                ours = forward.states(models.policy, piece, with_values)
            with models.as_reference(), resume(piece), forward.sharing(models.reference, piece):
                theirs = forward.states(models.reference, piece)
            both = forward.divergence(ours, theirs, piece.labels)
            for name, flat in zip(names, (both.logprobs, ours.values, both.ref_logprobs, both.divergence), strict=True):
                if flat is not None:
                    piece.put(found[name], piece.counted.spread(flat))

        self._visit(rollout, visit)
        return found

    def _visit(self, rollout: Rollout, visit: Callable[[Piece], None]) -> None:
        """`visit` all samples in pieces; long samples go together, so that little of a piece is padding, and so do
        samples of one query."""
        for line in self.forward.layout.line(rollout).passes(self.size):

            def work(parts: list[np.ndarray], samples: np.ndarray = line.samples) -> None:
                for part in parts:
                    visit(self.forward.layout.piece(rollout, samples[part]))

            self.budget.run(line.lengths.tolist(), work, line.repeated.tolist())

    # --- train ---------------------------------------------------------------------------------------------------

    def train(self, batch: Rollout, objective: Objective, updater: Updater) -> Stats:
        """Forward and backward of one mini-batch; its statistics."""
        count = len(batch.queries)
        line = self.forward.layout.line(batch) if batch.query_numbers is not None else None
        order = np.arange(count) if line is None else line.samples
        lengths = batch.positions.lengths[order].tolist()
        repeated = [0] * count if line is None else line.repeated.tolist()

        def work(parts: list[np.ndarray]) -> Stats:
            return self._train_parts(batch, objective, updater, [order[part] for part in parts])

        if updater.sharded:  # every part is exchanged between processes, so all make equally many
            return work(self.budget.split_alike(lengths, updater.processes.max, repeated))
        return self.budget.run(lengths, work, repeated)

    def _train_parts(self, batch: Rollout, objective: Objective, updater: Updater, parts: list[np.ndarray]) -> Stats:
        """The parts forward and backward one by one; the last backward waits for the verdict on all."""
        mask = batch.mask
        logprobs, vpreds, entropy = (torch.zeros(mask.shape, device=mask.device) for _ in range(3))
        with_values = objective.value_losses is not None
        with updater.in_parts():
            for i, part in enumerate(parts):
                last = i == len(parts) - 1
                piece = self.forward.layout.piece(batch, part if len(parts) > 1 else None)
                # the backward pass runs inside as well: a checkpointed layer asks for the same hidden states again
                with self._resumed(piece), self.forward.sharing(self.models.policy, piece):
                    # processes exchange gradients in the last backward pass
                    with nullcontext() if last else updater.without_exchange():
                        outputs, loss = self._forward(piece, objective, updater)
                        piece.put(logprobs, outputs.logprobs)
                        piece.put(entropy, outputs.entropy)
                        if with_values:
                            piece.put(vpreds, outputs.values.detach())
                        if not last:
                            updater.accumulate(loss)
                            continue
                    with torch.no_grad():
                        losses = objective.evaluate(
                            batch.as_minibatch(),
                            logprobs=logprobs,
                            entropy=entropy,
                            vpreds=vpreds if with_values else None,
                        )
                    # the policy's loss joins as a number, to be checked for finiteness; its gradient is in the anchor
                    return updater.update(loss + losses.policy, losses.statistics, mask)
        raise AssertionError("a mini-batch has at least one part")

    @staticmethod
    def _resumed(piece: Piece) -> AbstractContextManager[None]:
        batch = piece.batch
        return nullcontext() if batch.trunk is None else batch.trunk.training(batch.trunk_states, piece.row)

    def _forward(self, piece: Piece, objective: Objective, updater: Updater) -> tuple[TokenOutputs, torch.Tensor]:
        """A forward pass, and a 0-d loss with the gradients of all losses; it is as large as the value loss."""
        counted, batch, loss_scale = piece.counted, piece.batch.as_minibatch(), updater.loss_scale
        known = counted.take(batch.old_logprobs)

        def gradient_of(rows: slice, logprobs: torch.Tensor) -> torch.Tensor:
            # the losses see whole samples; where log-probs are not known yet they are those of the start
            whole = known.clone()
            whole[rows] = logprobs.to(known.dtype)
            # formed before the backward pass scales the loss: unscaled it would vanish in float16
            return counted.take(objective.slope(counted.spread(whole), batch))[rows] * loss_scale

        entropy_slope = None
        if objective.entropy_coef:
            entropy_slope = counted.take(batch.weights) * -(objective.policy_coef * objective.entropy_coef * loss_scale)
        # processes wait for the gradient of every parameter; the updater leaves those of unused values as they are
        with_values = objective.value_losses is not None or updater.processes.count > 1
        with self.autocast():
            slopes = Slopes(gradient_of, entropy_slope, objective.couples_tokens)
            outputs = self.forward.counted(self.models.policy, piece, slopes, with_values)
        loss = outputs.anchor / loss_scale
        if objective.value_losses is not None:
            losses = objective.value_losses(outputs.values, batch.old_values, batch.returns).losses
            loss = loss + objective.vf_coef * weighted_sum(losses, batch.weights)
        elif outputs.values is not None and updater.processes.count > 1:
            loss = loss + (outputs.values * 0.0).sum()
        return outputs, loss


class HookEngine(NamedTuple):
    """The path of release 0.7, through methods that a subclass overrides: full logits, untrimmed shapes."""

    models: Models
    batched_forward_pass: Callable[..., Any]
    """the trainer's method"""
    train_minibatch: Callable[..., Stats]
    """the trainer's method"""
    positions: Callable[[Inputs, torch.Tensor], TokenPositions]
    """(inputs, mask [B, T]) -> which positions hold tokens"""
    temperature: float
    """of the log-probs"""

    @torch.no_grad()
    def evaluate(
        self,
        rollout: Rollout,
        response_masks: list[torch.Tensor] | None = None,
        distributions: bool = False,
        with_values: bool = True,
    ) -> Rollout:
        """The batch with what both models say; the whole `distributions` [B, T, V] only if they are asked for."""

        def ask(model: Any) -> Any:
            with gathered(self.models.unwrap(model)):
                return self.batched_forward_pass(
                    model,
                    rollout.queries,
                    rollout.responses,
                    rollout.inputs,
                    return_logits=distributions,
                    response_masks=response_masks,
                )

        logprobs, logits, values, mask = ask(self.models.policy)
        with self.models.as_reference():
            ref_logprobs, ref_logits, _, _ = ask(self.models.reference)
        numbers = {"old_logprobs": logprobs.float(), "ref_logprobs": ref_logprobs.float()}
        if with_values:
            numbers["old_values"] = values.float()
        found = rollout.known(mask, **numbers)
        if distributions:
            whole = [torch.log_softmax(each.float() / self.temperature, dim=-1) for each in (logits, ref_logits)]
            found = found._replace(distributions=(whole[0], whole[1]))
        if not with_values:
            found = found._replace(old_values=None)
        return found._replace(mask=mask, positions=self.positions(rollout.inputs, mask))

    def train(self, batch: Rollout) -> Stats:
        """One mini-batch through `batched_forward_pass` and `train_minibatch`; its statistics."""
        logprobs, logits, vpreds, _ = self.batched_forward_pass(
            self.models.policy, batch.queries, batch.responses, batch.inputs, return_logits=True
        )
        return self.train_minibatch(
            batch.old_logprobs,
            batch.old_values,
            logprobs,
            logits,
            vpreds,
            batch.mask,
            batch.advantages,
            batch.returns,
        )
