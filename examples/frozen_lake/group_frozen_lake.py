"""Teach a language model to cross Gymnasium's frozen lake, by comparing the episodes of a group, without a value head.

Without a network, in about two minutes on two cores; the first run builds a small model that walks at random:

    python examples/frozen_lake/group_frozen_lake.py

With a chat model from the hub (meant for a GPU):

    python examples/frozen_lake/group_frozen_lake.py --model_name Qwen/Qwen2.5-0.5B-Instruct --chat \
        --learning_rate 1e-6 --advantage_estimator grpo --steps 12800

Every setting of PPOConfig and every field of `Arguments` below is an option; `--help` lists them.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from lake import DIRECTIONS, NUMBERS, make_lake, to_action, to_text, write_walk
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM

from trl_step import PPOConfig, PPOTrainer
from trl_step.environment import EnvironmentRunner

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sentiment.building import one_line_if_interrupted
from small_model import CACHE, SmallModelSettings, build_once, train_small_model, word_tokenizer
from small_run import SAMPLING, make_trainer, numbers_of, read_arguments, write_outcome

BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 40 * 256,  # samples, so 40 calls of `trainer.step`
    "batch_size": 256,
    "mini_batch_size": 64,
    "ppo_epochs": 2,
    "learning_rate": 1e-3,
    "advantage_estimator": "grpo",
    "kl_in": "loss",
    "kl_penalty": "k3",
    "init_kl_coef": 0.001,
    "adap_kl_ctrl": False,
    "loss_normalization": "tokens",
}
RULES = "Walk from the top left to the bottom right of a lake; there are holes. Say left, down, right or up.\n"


@dataclass
class Arguments:
    """Settings of the script."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")]
    small_model: SmallModelSettings = field(default_factory=lambda: SmallModelSettings(2, 64, 80, 32))
    """what to build if the built-in model is used"""
    cache_dir: Path = CACHE / "frozen_lake"
    """where it is stored"""
    output_dir: Path = Path("runs/frozen_lake")
    """folder for summary.json, curves.png and the tuned model"""
    chat: bool = False
    """put the lake into messages, each with the rules, by the tokenizer's chat template"""
    max_turns: int = 12
    """turns of an episode; the shortest way takes 6"""
    max_new_tokens: int = 3
    """longest turn of the model, in tokens"""
    group: int = 64
    """episodes that are compared with one another"""
    games: int = 512
    """episodes to compare before and after"""


def main() -> None:
    arguments = read_arguments(Arguments, BUILT_IN_SETTINGS, sys.argv[1:], __doc__)
    started = time.perf_counter()
    trainer = make_trainer(arguments.ppo, AutoModelForCausalLM, partial(build_model, arguments))
    runner = EnvironmentRunner(
        trainer.model,
        trainer.tokenizer,
        make_lake,
        to_text=(lambda place: RULES + to_text(place)) if arguments.chat else to_text,
        to_action=to_action,
        max_turns=arguments.max_turns,
        stop_strings=() if arguments.chat else ("\n",),
        chat=arguments.chat,
        # many episodes are sampled together, as the built-in model is small
        generation_kwargs={**SAMPLING, "batch_size": 256, "max_new_tokens": arguments.max_new_tokens},
    )

    before = crossed(runner, arguments.games)
    history = train(trainer, runner, arguments.group)
    after = crossed(runner, arguments.games)

    summary = {
        "crossed_first": before,
        "crossed_last": after,
        "crossed_in_training": [step["crossed"] for step in history],
    }
    seconds = write_outcome(trainer, arguments.output_dir, history, summary, started)["seconds"]
    print(f"crossed the lake: {before:.3f} -> {after:.3f} of all episodes ({seconds:.0f} s)")


def train(trainer: PPOTrainer, runner: EnvironmentRunner, group: int) -> list[dict[str, float]]:
    """Groups of episodes, then a step; the values to plot, and the share that crossed the lake."""
    history = []
    seeds = range(trainer.config.batch_size // group)
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="GRPO")
    for _ in progress:
        walks = runner.run(seeds, n=group)
        stats = trainer.step(walks.queries, walks.responses, walks.rewards, walks.masks, group_ids=walks.group_ids)
        columns = {"query": walks.group_ids, "response": [history.text for history in walks.histories]}
        trainer.log_stats(stats, columns, walks.rewards)
        history.append({"crossed": share_that_crossed(walks.turn_rewards), **numbers_of(stats)})
        progress.set_postfix(crossed=f"{history[-1]['crossed']:.3f}", KL=f"{history[-1]['KL']:.2f}")
    return history


def share_that_crossed(turn_rewards: list[list[float]]) -> float:
    """Gymnasium pays 1 for the last field, and nothing before."""
    return sum(rewards[-1] == 1.0 for rewards in turn_rewards) / len(turn_rewards)


def crossed(runner: EnvironmentRunner, games: int) -> float:
    """The share of so many episodes that crosses the lake, sampling as in training."""
    return share_that_crossed(runner.run([None], n=games).turn_rewards)


def build_model(arguments: Arguments) -> Path:
    """The folder of a small model that imitates `write_walk`."""

    def write(folder: Path) -> None:
        random_numbers = random.Random(arguments.small_model.seed)
        words = [*DIRECTIONS, *NUMBERS, write_walk(random_numbers, 100)]
        tokenizer = word_tokenizer(words)
        tokenizer.save_pretrained(folder)

        def draw() -> str:
            return write_walk(random_numbers, arguments.max_turns)

        train_small_model(tokenizer, draw, arguments.small_model, context=16 * arguments.max_turns).save_pretrained(
            folder
        )

    here = Path(__file__)
    return build_once(arguments.cache_dir, arguments.small_model, [here, here.with_name("lake.py")], write)


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
