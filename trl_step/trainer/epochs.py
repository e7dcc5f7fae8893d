"""The PPO epochs of a step: mini-batches, their losses, the updates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch

from trl_step.core import WANDB_PADDING, stack_dicts
from trl_step.ppo.batch import mini_batches
from trl_step.ppo.loss import mean_over, minibatch_weights, policy_loss_gradient, value_losses
from trl_step.ppo.stats import ARRAYS, join_minibatch_statistics
from trl_step.ppo.token_logprobs import LogprobGradient
from trl_step.trainer.modes import training_without_dropout
from trl_step.trainer.rollout import Rollout

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

Stats = dict[str, torch.Tensor]


def run_epochs(trainer: PPOTrainer, rollout: Rollout) -> Stats:
    """`ppo_epochs` passes over the batch in mini-batches; the statistics of every mini-batch, stacked [M, 1].

    The order comes from NumPy's global stream. Over several processes the statistics are those of the joined
    mini-batches.
    """
    config, count = trainer.config, len(rollout.queries)
    most = trainer._reduce_max(count)
    plain = trainer._overrides("batched_forward_pass", "loss", "train_minibatch")
    token_counts = rollout.masks.sum(dim=1).cpu().numpy()
    updater = trainer._updater
    updater.skipped = 0
    all_stats: list[Stats] = []
    tokens: list[float] = []
    with _in_training(trainer), training_without_dropout(trainer.model):
        for _ in range(config.ppo_epochs):
            order = np.random.permutation(count)
            for parts in mini_batches(order, config.backward_batch_size, config.mini_batch_size, most):
                weights = _loss_weights(trainer, parts, token_counts)
                for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
                    with updater.minibatch(weight, last=i == len(parts) - 1):
                        all_stats.append((_train_plain if plain else _train_fused)(trainer, rollout.take(part)))
                    tokens.append(float(token_counts[part].sum()))
            policykl = all_stats[-1]["policy/policykl"]
            if config.early_stopping and trainer._early_stop(_share(trainer, policykl, tokens[-1])):
                break
    stacked = _stack(all_stats)
    if trainer.is_distributed:
        stacked = join_minibatch_statistics(stacked, torch.tensor(tokens), trainer._reduce_sum)
    stacked["policy/skipped"] = torch.tensor([[float(updater.skipped)]])
    return stacked


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
    config = trainer.config
    batch = batch.narrow(*trainer._layout.trim(batch.inputs, batch.left_padded))
    chosen = batch.masks.bool()
    old, advantages = batch.logprobs[chosen], batch.advantages[chosen]
    count = max(len(old), 1)

    def gradient_of(rows: slice, logprobs: torch.Tensor) -> torch.Tensor:
        return policy_loss_gradient(logprobs, old[rows], advantages[rows], config.cliprange) / count

    # the backward pass runs inside as well: a checkpointed layer asks for the same hidden states again
    with nullcontext() if batch.trunk is None else batch.trunk.training(batch.trunk_states):
        return _forward_backward(trainer, batch, gradient_of)


def _forward_backward(trainer: PPOTrainer, batch: Rollout, gradient_of: LogprobGradient) -> Stats:
    config = trainer.config
    with trainer.accelerator.autocast():
        outputs = trainer._forward.chosen(trainer.model, batch.inputs, batch.masks, batch.left_padded, gradient_of)
    assert outputs.entropy is not None  # follows from `gradient_of`; for the type checker
    assert outputs.anchor is not None
    value_loss = mean_over(
        value_losses(outputs.values, batch.values, batch.returns, config.cliprange_value).losses, batch.masks
    )
    stats = trainer._minibatch_statistics(
        outputs.logprobs,
        batch.logprobs,
        outputs.values,
        batch.values,
        batch.masks,
        batch.advantages,
        batch.returns,
        outputs.entropy,
    )
    # the anchor is a zero that carries the policy's gradient; the loss's value joins it to be checked for finiteness
    loss = outputs.anchor + stats["loss/policy"] + config.vf_coef * value_loss
    return trainer._update(loss, stats, batch.masks)


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
