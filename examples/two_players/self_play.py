"""Teach a language model a game of two players by letting it play against itself.

Without a network, in about a minute on two cores; the first run builds a small model that plays at random:

    python examples/two_players/self_play.py

Both players are the policy, and each has an episode of its own. What it is worth is measured against the best player's
moves, and against a player who moves at random. Every setting of PPOConfig and every field of `Arguments` below is an
option; `--help` lists them.
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
from nim import LARGEST, Nim, best_moves, random_move, write_game
from tqdm.auto import tqdm

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)
from trl_step.environment import Episodes, GameRunner

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
    "steps": 40 * 256,  # episodes, so 40 calls of `trainer.step`
    "batch_size": 256,
    "mini_batch_size": 64,
    "learning_rate": 1e-3,
    "gae_level": "turn",  # a move is one time step
    "lam": 0.7,
    "init_kl_coef": 0.01,
    "adap_kl_ctrl": False,
}


@dataclass
class Arguments:
    """Settings of the script."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")]
    small_model: SmallModelSettings = field(default_factory=lambda: SmallModelSettings(2, 64, 100, 32))
    """what to build if the built-in model is used"""
    cache_dir: Path = CACHE / "two_players"
    """where it is stored"""
    output_dir: Path = Path("runs/two_players")
    """folder for summary.json, curves.png and the tuned model"""
    max_new_tokens: int = 3
    """longest turn of the model, in tokens"""
    games: int = 256
    """games against the random player for each of the two places, to compare before and after"""


def main() -> None:
    arguments = read_arguments(Arguments, BUILT_IN_SETTINGS, sys.argv[1:], __doc__)
    started = time.perf_counter()
    trainer = make_trainer(arguments.ppo, AutoModelForCausalLMWithValueHead, partial(build_model, arguments))
    settings: dict[str, Any] = {
        "stop_strings": ("\n",),
        # many episodes are sampled together, as the built-in model is small
        "generation_kwargs": {**SAMPLING, "batch_size": 256, "max_new_tokens": arguments.max_new_tokens},
    }
    with_itself = GameRunner(trainer.model, trainer.tokenizer, Nim, **settings)
    with_others = [
        GameRunner(trainer.model, trainer.tokenizer, Nim, opponents={player: random_move}, **settings)
        for player in (0, 1)
    ]

    numbers = random.Random(arguments.ppo.seed)
    before = won(with_others, arguments.games, numbers)
    history = train(trainer, [with_itself, *with_others], numbers)
    after = won(with_others, arguments.games, numbers)

    summary = {
        "won_first": before,
        "won_last": after,
        "best_moves_in_training": [step["best moves"] for step in history],
    }
    seconds = write_outcome(trainer, arguments.output_dir, history, summary, started)["seconds"]
    first, last = history[0]["best moves"], history[-1]["best moves"]
    print(
        f"games won against a random player: {before:.2f} -> {after:.2f}; best moves where there is one: {first:.2f} "
        f"-> {last:.2f} ({seconds:.0f} s)"
    )


def train(trainer: PPOTrainer, runners: list[GameRunner], numbers: random.Random) -> list[dict[str, float]]:
    """Games of the policy with itself, and with a random player, who shows it heaps that good players never leave; then
    a step. Returns the values to plot, and the share of best moves."""
    history = []
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="self-play")
    for _ in progress:
        each = trainer.config.batch_size // 4
        played = [runner.run([numbers.random() for _ in range(each)]) for runner in runners]
        # the policy's episodes: two of each game with itself; the reward is on the last token of the last move
        games = Episodes.joined(played)
        stats = trainer.step(games.queries, games.responses, games.rewards, games.masks)
        columns = {"query": games.group_ids, "response": [history.text for history in games.histories]}
        trainer.log_stats(stats, columns, games.rewards)
        history.append({"best moves": share_of_best_moves(games), **numbers_of(stats)})
        progress.set_postfix(best=f"{history[-1]['best moves']:.2f}", KL=f"{history[-1]['KL']:.2f}")
    return history


def share_of_best_moves(games: Episodes) -> float:
    """Of the moves at heaps that can be won, the share that keeps them so."""
    moves = [info["best"] for infos in games.infos for info in infos if best_moves(info["heap"])]
    return sum(moves) / max(len(moves), 1)


def won(runners: list[GameRunner], games: int, numbers: random.Random) -> float:
    """The share of games that the policy wins, `games` with each of the runners."""
    played = [runner.run([numbers.random() for _ in range(games)]).turn_rewards for runner in runners]
    totals = [sum(rewards) for episodes in played for rewards in episodes]
    return sum(total > 0 for total in totals) / len(totals)


def build_model(arguments: Arguments) -> Path:
    """The folder of a small model that imitates `write_game`."""

    def write(folder: Path) -> None:
        random_numbers = random.Random(arguments.small_model.seed)
        words = [f"heap {number}\n" for number in range(LARGEST + 1)]
        tokenizer = word_tokenizer(words, WORDS_AND_NUMBERS)
        tokenizer.save_pretrained(folder)
        model = train_small_model(tokenizer, lambda: write_game(random_numbers), arguments.small_model, context=128)
        model.save_pretrained(folder)

    here = Path(__file__)
    return build_once(arguments.cache_dir, arguments.small_model, [here, here.with_name("nim.py")], write)


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
