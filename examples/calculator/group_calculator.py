"""Teach a language model to use a calculator without a value head, by comparing eight attempts at each problem.

Without a network, in a few minutes on two cores:

    python examples/calculator/group_calculator.py

The loop has what DAPO (https://arxiv.org/abs/2503.14476) adds to group advantages: problems on which all attempts are
equally good are drawn anew, and an answer that is too long costs something. Every setting of PPOConfig and every field
of `Arguments` is an option; `--help` lists them.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ppo_calculator import Arguments as CommonArguments
from ppo_calculator import play, run
from problems import draw_problem
from sentiment.building import one_line_if_interrupted
from small_run import numbers_of, read_arguments
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from trl_step import PPOTrainer, TextEnvironment

BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 40 * 128,  # samples, so 40 calls of `trainer.step`
    "batch_size": 128,
    "mini_batch_size": 32,
    "learning_rate": 1e-4,
    "advantage_estimator": "grpo",
    "cliprange_high": 0.28,
    "loss_normalization": "tokens",
    "kl_in": "loss",
    "kl_penalty": "k3",
    "init_kl_coef": 0.02,
    "adap_kl_ctrl": False,
}


@dataclass
class Arguments(CommonArguments):
    """Settings of the script."""

    attempts: int = 8
    """episodes for each problem"""
    most_rounds: int = 5
    """how often problems are drawn for one step, at most"""
    free_length: int = 24
    """tokens of an episode's response that cost nothing"""
    longest: int = 40
    """tokens of a response that cost 1"""


def main() -> None:
    arguments = read_arguments(Arguments, BUILT_IN_SETTINGS, sys.argv[1:], __doc__)
    play(arguments, AutoModelForCausalLM, partial(train, arguments=arguments))


def train(
    trainer: PPOTrainer, environment: TextEnvironment, random_numbers: random.Random, arguments: Arguments
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Several attempts at each problem, then a step; the values to plot, and the number of episodes drawn."""
    history, drawn = [], 0
    wanted = trainer.config.batch_size // arguments.attempts
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="GRPO")
    for _ in progress:
        groups: list[list[Any]] = []
        for _ in range(arguments.most_rounds):
            problems = [draw_problem(random_numbers) for _ in range(wanted)]
            repeated = [problem for problem in problems for _ in range(arguments.attempts)]
            queries, responses, masks, rewards, _ = run(environment, repeated)
            drawn += len(repeated)
            rewards = [
                reward - price_of_length(len(response), arguments)
                for reward, response in zip(rewards, responses, strict=True)
            ]
            rows = list(zip(queries, responses, rewards, masks, strict=True))
            attempts = [rows[i : i + arguments.attempts] for i in range(0, len(rows), arguments.attempts)]
            groups += [group for group in attempts if len({float(row[2]) for row in group}) > 1]
            if len(groups) >= wanted:
                break
        samples = [(*row, number) for number, group in enumerate(groups[:wanted]) for row in group]
        if not samples:  # all attempts at every problem were equally good
            continue
        queries, responses, rewards, masks, ids = (list(column) for column in zip(*samples, strict=True))
        stats = trainer.step(queries, responses, rewards, masks, group_ids=ids)
        history.append(numbers_of(stats))
        progress.set_postfix(right=f"{history[-1]['reward']:.2f}", KL=f"{history[-1]['KL']:.2f}")
    if not history:
        raise SystemExit("no step was made: all attempts at every problem were equally good")
    return history, {"episodes_drawn": drawn}


def price_of_length(length: int, arguments: Arguments) -> torch.Tensor:
    """0 up to the free length, then in proportion up to 1 at the longest."""
    over = (length - arguments.free_length) / (arguments.longest - arguments.free_length)
    return torch.tensor(min(max(over, 0.0), 1.0))


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
