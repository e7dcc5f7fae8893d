"""Teach a language model to play a game of many turns with PPO, with a reward for every turn.

Without a network, in about two minutes on two cores; the first run builds a small model that knows the rules:

    python examples/guess_number/ppo_guess_number.py

With a chat model from the hub (meant for a GPU):

    python examples/guess_number/ppo_guess_number.py --model_name Qwen/Qwen2.5-0.5B-Instruct --chat \
        --learning_rate 1e-5 --steps 25600

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
from game import BEST_MEAN, HIGHEST, MOST_GUESSES, GuessTheNumber, guesses_needed, write_game
from tqdm.auto import tqdm

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)
from trl_step.environment import EnvironmentRunner

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sentiment.building import one_line_if_interrupted
from small_model import (
    CACHE,
    WORDS_AND_NUMBERS,
    SmallModelSettings,
    build_once,
    train_small_model,
    word_tokenizer,
)
from small_run import SAMPLING, make_trainer, numbers_of, read_arguments, write_outcome

BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 40 * 256,  # samples, so 40 calls of `trainer.step`
    "batch_size": 256,
    "mini_batch_size": 64,
    "learning_rate": 1e-3,
    "lam": 0.7,
    "init_kl_coef": 0.02,
    "adap_kl_ctrl": False,
}


@dataclass
class Arguments:
    """Settings of the script."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")]
    small_model: SmallModelSettings = field(default_factory=lambda: SmallModelSettings(2, 64, 400))
    """what to build if the built-in model is used"""
    cache_dir: Path = CACHE / "guess_number"
    """where it is stored"""
    output_dir: Path = Path("runs/guess_number")
    """folder for summary.json, curves.png and the tuned model"""
    chat: bool = False
    """put the game into messages, with the tokenizer's chat template"""
    max_new_tokens: int = 4
    """longest turn of the model, in tokens"""
    games: int = 16
    """games for each secret number, to compare before and after"""


def main() -> None:
    arguments = read_arguments(Arguments, BUILT_IN_SETTINGS, sys.argv[1:], __doc__)
    started = time.perf_counter()
    trainer = make_trainer(arguments.ppo, AutoModelForCausalLMWithValueHead, partial(build_model, arguments))
    runner = EnvironmentRunner(
        trainer.model,
        trainer.tokenizer,
        GuessTheNumber,
        max_turns=MOST_GUESSES,
        stop_strings=() if arguments.chat else ("\n",),
        chat=arguments.chat,
        generation_kwargs={**SAMPLING, "max_new_tokens": arguments.max_new_tokens},
    )

    before = mean_guesses(runner, arguments.games)
    history = train(trainer, runner, random.Random(arguments.ppo.seed))
    after = mean_guesses(runner, arguments.games)

    summary = {
        "guesses_first": before,
        "guesses_last": after,
        "guesses_best": BEST_MEAN,
        "guesses_in_training": [step["guesses"] for step in history],
    }
    seconds = write_outcome(trainer, arguments.output_dir, history, summary, started)["seconds"]
    print(f"mean guesses: {before:.2f} -> {after:.2f} (the best player needs {BEST_MEAN:.2f}; {seconds:.0f} s)")


def train(trainer: PPOTrainer, runner: EnvironmentRunner, random_numbers: random.Random) -> list[dict[str, float]]:
    """Play games, and make a step with the rewards of their turns; returns the values to plot, and the mean number of
    guesses."""
    history = []
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="PPO")
    for _ in progress:
        secrets = [random_numbers.randint(1, HIGHEST) for _ in range(trainer.config.batch_size)]
        games = runner.run(secrets)
        # rewards[i] has one number per response token: each guess has its own, on the last token of its turn
        stats = trainer.step(games.queries, games.responses, games.rewards, games.masks)
        columns = {"query": secrets, "response": [history.text for history in games.histories]}
        trainer.log_stats(stats, columns, games.rewards)
        needed = [guesses_needed(infos, secret) for infos, secret in zip(games.infos, secrets, strict=True)]
        history.append({"guesses": sum(needed) / len(needed), **numbers_of(stats)})
        progress.set_postfix(guesses=f"{history[-1]['guesses']:.2f}", KL=f"{history[-1]['KL']:.2f}")
    return history


def mean_guesses(runner: EnvironmentRunner, games: int) -> float:
    """Mean number of guesses over `games` games for each secret number, sampling as in training."""
    secrets = [secret for secret in range(1, HIGHEST + 1) for _ in range(games)]
    infos = runner.run(secrets).infos
    return sum(guesses_needed(info, secret) for info, secret in zip(infos, secrets, strict=True)) / len(secrets)


def build_model(arguments: Arguments) -> Path:
    """The folder of a small model that imitates `write_game`."""

    def write(folder: Path) -> None:
        random_numbers = random.Random(arguments.small_model.seed)
        numbers = " ".join(map(str, range(1, HIGHEST + 1)))
        games = [write_game(random_numbers) for _ in range(1000)]
        tokenizer = word_tokenizer([*games, numbers], WORDS_AND_NUMBERS)
        tokenizer.save_pretrained(folder)
        model = train_small_model(tokenizer, lambda: write_game(random_numbers), arguments.small_model, context=160)
        model.save_pretrained(folder)

    here = Path(__file__)
    return build_once(arguments.cache_dir, arguments.small_model, [here, here.with_name("game.py")], write)


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
