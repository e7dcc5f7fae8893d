"""The PPO epochs of a step: mini-batches in the seed's order, their losses, the updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from trl_step.algorithms.losses.tokens import token_weights
from trl_step.algorithms.objective import minibatch_weights
from trl_step.algorithms.stats import ARRAYS, join_minibatch_statistics
from trl_step.core import WANDB_PADDING, stack_dicts
from trl_step.trainer.batches.rollout import Rollout
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.updates.updater import Updater

Stats = dict[str, torch.Tensor]


class Trained(NamedTuple):
    """What came out of the epochs of a step."""

    statistics: Stats
    """of every mini-batch, each [M, 1]; what has a value per token [1, n]"""
    epochs: int
    """that ran before early stopping"""


def run_epochs(
    rollout: Rollout,
    train: Callable[[Rollout], Stats],
    updater: Updater,
    processes: Processes,
    early_stop: Callable[[torch.Tensor], bool] | None,
    config: PPOConfig,
) -> Trained:
    """`ppo_epochs` passes over the batch in mini-batches.

    The order comes from NumPy's global stream. Over several processes the statistics are those of the joined
    mini-batches.

    Args:
        train: forward and backward of one mini-batch, which reports to `updater`; its statistics
        early_stop: whether the mean of the policy's KL (0-d) that follows an epoch ends the step; None: nothing does
    """
    count = len(rollout.queries)
    most = processes.max(count)
    size: Any = config.backward_batch_size  # filled in by the configuration
    normalization = config.loss_normalization
    token_counts = rollout.positions.counted.sum(axis=1)
    updater.reset()
    all_stats: list[Stats] = []
    tokens: list[float] = []
    samples: list[float] = []
    ratio_error = torch.zeros(())
    epochs = 0
    for _ in range(config.ppo_epochs):
        epochs += 1
        order = np.random.permutation(count)
        for parts in mini_batches(order, size, config.mini_batch_size, most):
            sizes = torch.tensor([[token_counts[part].sum(), len(part)] for part in parts], dtype=torch.float64)
            everyone = processes.sum(sizes).cpu()
            weights = minibatch_weights(sizes, everyone, processes.count, normalization)
            for i, (part, weight) in enumerate(zip(parts, weights, strict=True)):
                batch = rollout.take(part)
                batch = batch._replace(weights=token_weights(batch.mask, normalization, config.loss_constant_length))
                with updater.minibatch(weight, last=i == len(parts) - 1):
                    all_stats.append(train(batch))
                if len(all_stats) == 1:
                    ratio_error = _ratio_error(all_stats[0]["policy/ratio"], batch.mask, processes)
                tokens.append(float(token_counts[part].sum()))
                samples.append(float(len(part)))
        if early_stop is not None and early_stop(_share(all_stats[-1]["policy/policykl"], tokens[-1], processes)):
            break
    updater.finish()
    stacked = stack_dicts(all_stats)
    for key in ARRAYS:  # in one row, padded with the filler that release 0.7 used
        if key in stacked:
            stacked[key] = torch.nan_to_num(stacked[key].flatten(), WANDB_PADDING).unsqueeze(0)
    if processes.count > 1:
        of_losses = samples if normalization in ("samples", "constant") else tokens
        stacked = join_minibatch_statistics(stacked, torch.tensor(tokens), processes.sum, torch.tensor(of_losses))
    stacked["policy/ratio_error"] = ratio_error.view(1, 1)
    stacked["policy/skipped"] = torch.tensor([[float(updater.skipped)]])
    return Trained(stacked, epochs)


def mini_batches(
    order: np.ndarray, backward_batch_size: int, mini_batch_size: int, at_least: int = 0
) -> Iterator[list[np.ndarray]]:
    """Cut a permutation of the samples into backward batches (one optimizer step each) of mini-batches.

    The last backward batch and its last mini-batch may be smaller. If other processes have more samples, `at_least`
    (their number of samples) adds empty mini-batches, so that all of them make equally many.
    """
    count = max(len(order), at_least)
    for start in range(0, count, backward_batch_size):
        end = min(start + backward_batch_size, count)
        yield [order[i : min(i + mini_batch_size, end)] for i in range(start, end, mini_batch_size)]


def _ratio_error(ratio: torch.Tensor, mask: torch.Tensor, processes: Processes) -> torch.Tensor:
    """How far the ratio of a mini-batch is from 1, as a mean over its tokens on all processes."""
    error = torch.where(mask.bool(), (ratio - 1).abs(), 0.0).sum()
    total, count = processes.sum(torch.stack((error, mask.sum().to(error.dtype))))
    return total / count


def _share(mean: torch.Tensor, tokens: float, processes: Processes) -> torch.Tensor:
    """This process's mean over `tokens` tokens, scaled so that the mean over processes is that over all tokens."""
    if processes.count == 1:
        return mean
    return mean * (tokens * processes.count / float(processes.sum(torch.tensor(tokens))))
