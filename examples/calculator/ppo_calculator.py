"""Teach a language model to use a calculator with PPO.

Without a network, in about two minutes on two cores; the first run builds a small model that has seen the calculator:

    python examples/calculator/ppo_calculator.py

With a model from the hub, which is shown the calculator in a prompt (meant for a GPU):

    python examples/calculator/ppo_calculator.py --model_name Qwen/Qwen2.5-0.5B --learning_rate 1e-5 --steps 6400

Every setting of PPOConfig and every field of `Arguments` below is an option; `--help` lists them.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from problems import Problem, calculate, draw_problem, is_right, write_episode
from tqdm.auto import tqdm

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    TextEnvironment,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))
from sentiment.building import one_line_if_interrupted
from small_model import CACHE, SmallModelSettings, build_once, train_small_model, word_tokenizer
from small_run import BUILT_IN, SAMPLING, make_trainer, numbers_of, read_arguments, write_outcome

BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 40 * 128,  # samples, so 40 calls of `trainer.step`
    "batch_size": 128,
    "mini_batch_size": 32,
    "learning_rate": 1e-4,
}
# The prompt for a model that was not built for this.
PROMPT = """Solve the problems with the calculator.

What is 13 minus 3?
<request><Calculator>13-3<call>10<response>
Result=10<submit>

There are 4 trees of 12 birds. How many birds?
<request><Calculator>4*12<call>48<response>
Result=48<submit>

"""


@dataclass
class Arguments:
    """Settings of the script."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")]
    small_model: SmallModelSettings = field(default_factory=SmallModelSettings)
    """what to build if the built-in model is used"""
    cache_dir: Path = CACHE / "calculator"
    """where it is stored"""
    output_dir: Path = Path("runs/calculator")
    """folder for summary.json, curves.png and the tuned model"""
    max_new_tokens: int = 16
    """longest turn of the model, in tokens"""
    held_out: int = 512
    """problems with numbers that were never trained on, to compare before and after"""


def main() -> None:
    arguments = read_arguments(Arguments, BUILT_IN_SETTINGS, sys.argv[1:], __doc__)
    play(arguments, AutoModelForCausalLMWithValueHead, train)


def play(
    arguments: Arguments,
    model_class: Any,
    train: Callable[[PPOTrainer, TextEnvironment, random.Random], tuple[list[dict[str, float]], dict[str, Any]]],
) -> None:
    """Load or build the model, train it, and compare the share of right answers before and after.

    Args:
        model_class: of the policy
        train: gives the values to plot, and what else goes into summary.json
    """
    started = time.perf_counter()
    built_in = arguments.ppo.model_name == BUILT_IN
    trainer = make_trainer(arguments.ppo, model_class, partial(build_model, arguments))
    environment = make_environment(trainer, arguments, built_in)

    random_numbers = random.Random(arguments.ppo.seed)
    held_out = [draw_problem(random_numbers, held_out=True) for _ in range(arguments.held_out)]
    before = share_of_right_answers(environment, held_out)
    history, more = train(trainer, environment, random_numbers)
    after = share_of_right_answers(environment, held_out)

    summary = {
        "right_first": before,
        "right_last": after,
        "right_in_training": [step["reward"] for step in history],
        **more,
        "held_out": arguments.held_out,
    }
    seconds = write_outcome(trainer, arguments.output_dir, history, summary, started)["seconds"]
    gain = 100 * (after - before)
    print(f"right answers on held-out problems: {before:.1%} -> {after:.1%} ({gain:+.1f} points, {seconds:.0f} s)")


def make_environment(trainer: PPOTrainer, arguments: Arguments, built_in: bool) -> TextEnvironment:
    """Episodes with the calculator; a model that was not built for it is shown how in a prompt."""
    return TextEnvironment(
        trainer.model,
        trainer.tokenizer,
        tools={"Calculator": calculate},
        reward_fn=reward,
        prompt="" if built_in else PROMPT,
        max_turns=2,  # one for the call, one for the answer
        generation_kwargs={**SAMPLING, "max_new_tokens": arguments.max_new_tokens},
    )


def train(
    trainer: PPOTrainer, environment: TextEnvironment, random_numbers: random.Random
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Draw problems, let the model work on them with the calculator, and make a step; returns the values to plot. The
    reward is the share of right answers."""
    history = []
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="PPO")
    for _ in progress:
        problems = [draw_problem(random_numbers) for _ in range(trainer.config.batch_size)]
        queries, responses, masks, rewards, histories = run(environment, problems)
        # the mask excludes the calculator's replies: the model is not trained to write them
        stats = trainer.step(queries, responses, rewards, masks)
        columns = {"query": [problem.question for problem in problems], "response": [h.text for h in histories]}
        trainer.log_stats(stats, columns, rewards)
        history.append(numbers_of(stats))
        progress.set_postfix(right=f"{history[-1]['reward']:.2f}", KL=f"{history[-1]['KL']:.2f}")
    return history, {}


def run(environment: TextEnvironment, problems: list[Problem]) -> Any:
    """One episode for each problem."""
    return environment.run([problem.question for problem in problems], answers=[problem.answer for problem in problems])


def reward(texts: list[str], answers: list[str]) -> list[float]:
    """1 if the model's last turn has the right result, otherwise 0."""
    return [float(is_right(text, answer)) for text, answer in zip(texts, answers, strict=True)]


def share_of_right_answers(environment: TextEnvironment, problems: list[Problem]) -> float:
    """The share of the problems that the model solves, sampling as in training."""
    return sum(run(environment, problems)[3]) / len(problems)


def build_model(arguments: Arguments) -> Path:
    """The folder of a small model that imitates `write_episode`."""

    def write(folder: Path) -> None:
        random_numbers = random.Random(arguments.small_model.seed)
        examples = [write_episode(random_numbers) for _ in range(1000)]
        tokenizer = word_tokenizer([*examples, "0123456789+-*/=."])
        tokenizer.save_pretrained(folder)
        model = train_small_model(tokenizer, lambda: write_episode(random_numbers), arguments.small_model, context=96)
        model.save_pretrained(folder)

    here = Path(__file__)
    return build_once(arguments.cache_dir, arguments.small_model, [here, here.with_name("problems.py")], write)


if __name__ == "__main__":
    with one_line_if_interrupted():
        main()
