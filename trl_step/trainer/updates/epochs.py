"""The PPO epochs of a step: mini-batches, their losses, the updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from trl_step.algorithms.objective import minibatch_statistics, minibatch_weights, policy_loss_gradient, value_losses
from trl_step.algorithms.stats import ARRAYS, join_minibatch_statistics
from trl_step.core import WANDB_PADDING, stack_dicts
from trl_step.models.shortcuts.training_mode import training_without_dropout
from trl_step.trainer.batches.padding import mini_batches
from trl_step.trainer.batches.positions import Chosen, upload
from trl_step.trainer.batches.rollout import Rollout
from trl_step.trainer.engine.forward import TokenOutputs

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

Stats = dict[str, torch.Tensor]


def run_epochs(trainer: PPOTrainer, rollout: Rollout) -> tuple[Stats, int]:
    """`ppo_epochs` passes over the batch in mini-batches: the statistics of every mini-batch, stacked [M, 1], and the
    number of epochs until early stopping.

    The order comes from NumPy's global stream. Over several processes the statistics are those of the joined
    mini-batches.
    """
    config, count = trainer.config, len(rollout.queries)
    most = trainer._reduce_max(count)
    plain = trainer._overrides("batched_forward_pass", "loss", "train_minibatch")
    token_counts = rollout.places.counted.sum(axis=1)
    updater = trainer._updater
    updater.reset()
    all_stats: list[Stats] = []
    tokens: list[float] = []
    ratio_error = torch.zeros(())
    epochs_run = 0
    with _in_training(trainer), training_without_dropout(trainer.model), trainer._forward.buffers.kept():
        for _ in range(config.ppo_epochs):
            epochs_run += 1
            order = np.random.permutation(count)
            for parts in mini_batches(order, config.backward_batch_size, config.mini_batch_size, most):
                weights = _loss_weights(trainer, parts, token_counts)
                for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
                    batch = rollout.take(part)
                    with updater.minibatch(weight, last=i == len(parts) - 1):
                        all_stats.append((_train_plain if plain else _train_fused)(trainer, batch))
                    if len(all_stats) == 1:
                        ratio_error = _ratio_error(trainer, all_stats[0], batch.masks)
                    tokens.append(float(token_counts[part].sum()))
            policykl = all_stats[-1]["policy/policykl"]
            if config.early_stopping and trainer._early_stop(_share(trainer, policykl, tokens[-1])):
                break
    updater.finish()
    stacked = _stack(all_stats)
    if trainer.is_distributed:
        stacked = join_minibatch_statistics(stacked, torch.tensor(tokens), trainer._reduce_sum)
    stacked["policy/ratio_error"] = ratio_error.view(1, 1)
    stacked["policy/skipped"] = torch.tensor([[float(updater.skipped)]])
    return stacked, epochs_run


def _ratio_error(trainer: PPOTrainer, stats: Stats, masks: torch.Tensor) -> torch.Tensor:
    """How far the ratio of a mini-batch is from 1, as a mean over its tokens on all processes."""
    error = torch.where(masks.bool(), (stats["policy/ratio"] - 1).abs(), 0.0).sum()
    total, count = trainer._reduce_sum(torch.stack((error, masks.sum().to(error.dtype))))
    return total / count


@contextmanager
def _in_training(trainer: PPOTrainer) -> Iterator[None]:
    """`batched_forward_pass` leaves the modules' modes alone meanwhile."""
    trainer._training = True
    try:
        yield
    finally:
        trainer._training = False


def _loss_weights(trainer: PPOTrainer, parts: list[np.ndarray], token_counts: np.ndarray) -> list[float]:
    own = torch.tensor([[token_counts[part].sum(), len(part)] for part in parts], dtype=torch.float64)
    everyone = trainer._reduce_sum(own).cpu() if trainer.is_distributed else own
    return minibatch_weights(own, everyone, trainer.accelerator.num_processes, trainer.config.loss_normalization)


def _share(trainer: PPOTrainer, mean: torch.Tensor, tokens: float) -> torch.Tensor:
    """This process's mean over `tokens` tokens, scaled so that the mean over processes is that over all tokens."""
    if not trainer.is_distributed:
        return mean
    everyone = float(trainer._reduce_sum(torch.tensor(tokens)))
    return mean * (tokens * trainer.accelerator.num_processes / everyone)


def _train_fused(trainer: PPOTrainer, batch: Rollout) -> Stats:
    """The fast path: the policy's gradient is formed while its log-probs are, and no logits are kept."""
    lengths = batch.places.lengths.tolist()
    if trainer._updater.sharded:  # every part is exchanged between processes, so all make equally many
        return _train_parts(trainer, batch, trainer._forward_size.split_alike(lengths, trainer._reduce_max))
    return trainer._forward_size.run(lengths, lambda parts: _train_parts(trainer, batch, parts))


def _train_parts(trainer: PPOTrainer, batch: Rollout, parts: list[np.ndarray]) -> Stats:
    """One mini-batch, its parts forward and backward one by one; the last backward waits for the verdict on all."""
    config, count = trainer.config, batch.masks.sum().clamp(min=1)
    logprobs, values, entropy = (torch.zeros(batch.masks.shape, device=batch.masks.device) for _ in range(3))
    with trainer._updater.in_parts():
        for part in parts:
            piece = batch.take(part) if len(parts) > 1 else batch
            inputs, columns = trainer._layout.trim(piece.inputs, piece.places)
            chosen = piece.places.chosen(columns, piece.masks.device)
            piece = piece.narrow(inputs, columns)
            samples = upload(part, piece.masks.device) if len(parts) > 1 else slice(None)
            # the backward pass runs inside as well: a checkpointed layer asks for the same hidden states again
            with nullcontext() if piece.trunk is None else piece.trunk.training(piece.trunk_states):
                last = part is parts[-1]
                # processes exchange gradients in the last backward pass
                with nullcontext() if last else trainer._updater.without_exchange():
                    outputs, loss = _forward(trainer, piece, chosen, count)
                    for whole, own in (
                        (logprobs, outputs.logprobs),
                        (values, outputs.values),
                        (entropy, outputs.entropy),
                    ):
                        whole[samples, columns] = own.detach()
                    if not last:
                        trainer._updater.part(loss)
                        continue
                stats = minibatch_statistics(
                    logprobs=logprobs,
                    old_logprobs=batch.logprobs,
                    vpreds=values,
                    values=batch.values,
                    advantages=batch.advantages,
                    returns=batch.returns,
                    mask=batch.masks,
                    entropy=entropy,
                    cliprange=config.cliprange,
                    cliprange_value=config.cliprange_value,
                    vf_coef=config.vf_coef,
                )
                # the policy's loss joins as a number, to be checked for finiteness; its gradient is in the anchor
                return trainer._update(loss + stats["loss/policy"], stats, batch.masks)
    raise AssertionError("a mini-batch has at least one part")


def _forward(
    trainer: PPOTrainer, batch: Rollout, chosen: Chosen, count: torch.Tensor
) -> tuple[TokenOutputs, torch.Tensor]:
    """Forward pass at the positions `chosen`, and a 0-d loss with the gradients of both losses, as sums over tokens
    divided by `count`.

    Its value is that of the value loss alone.
    """
    config = trainer.config
    old, advantages = chosen.take(batch.logprobs), chosen.take(batch.advantages)
    # the gradient is formed in front of the backward pass; unscaled it would vanish in float16
    loss_scale = trainer._updater.loss_scale

    def gradient_of(rows: slice, logprobs: torch.Tensor) -> torch.Tensor:
        return policy_loss_gradient(logprobs, old[rows], advantages[rows], config.cliprange) / count * loss_scale

    with trainer.accelerator.autocast():
        outputs = trainer._forward.chosen(trainer.model, batch.inputs, chosen, batch.places.left_padded, gradient_of)
    losses = value_losses(outputs.values, batch.values, batch.returns, config.cliprange_value).losses
    value_loss = torch.where(batch.masks.bool(), losses, 0.0).sum() / count
    return outputs, outputs.anchor / loss_scale + config.vf_coef * value_loss


def _train_plain(trainer: PPOTrainer, batch: Rollout) -> Stats:
    """The path of release 0.7, for subclasses that override a method of it: full logits, untrimmed shapes."""
    logprobs, logits, vpreds, _ = trainer.batched_forward_pass(
        trainer.model, batch.queries, batch.responses, batch.inputs, return_logits=True
    )
    assert logits is not None  # they were asked for
    return trainer.train_minibatch(
        batch.logprobs, batch.values, logprobs, logits, vpreds, batch.masks, batch.advantages, batch.returns
    )


def _stack(all_stats: list[Stats]) -> Stats:
    """Scalars as [M, 1]; what has a value per token in one row, padded with the filler that release 0.7 used."""
    stacked = stack_dicts(all_stats)
    for key in ARRAYS:
        if key in stacked:
            stacked[key] = torch.nan_to_num(stacked[key].flatten(), WANDB_PADDING).unsqueeze(0)
    return stacked
