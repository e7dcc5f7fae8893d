"""Teach a language model to use a calculator with PPO.

Without a network, in about two minutes on two cores; the first run builds a small model that has seen the calculator:

    python examples/calculator/ppo_calculator.py

With a model from the hub, which is shown the calculator in a prompt (made for a GPU):

    python examples/calculator/ppo_calculator.py --model_name Qwen/Qwen2.5-0.5B --learning_rate 1e-5 --steps 6400

Every setting of PPOConfig is an option, and so is every field of `Arguments` below; `--help` lists them.
"""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from problems import Problem, calculate, draw_problem, is_right, write_episode
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    TextEnvironment,
    create_reference_model,
    set_seed,
)

sys.path.append(str(Path(__file__).resolve().parents[1]))
from small_model import CACHE, SmallModelSettings, build_once, train_small_model, word_tokenizer

BUILT_IN = "built-in"
BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 40 * 128,  # samples, so 40 calls of `trainer.step`
    "batch_size": 128,
    "mini_batch_size": 32,
    "learning_rate": 1e-4,
}
# What a model is shown that was not made for this.
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
    """what to build where the built-in model is used"""
    cache_dir: Path = CACHE / "calculator"
    """where it is kept"""
    output_dir: Path = Path("runs/calculator")
    """folder for summary.json and the tuned model"""
    max_new_tokens: int = 16
    """longest turn of the model, in tokens"""
    held_out: int = 512
    """problems with numbers that were never trained on, for the comparison of before and after"""


def main() -> None:
    arguments = read_arguments(sys.argv[1:])
    started = time.perf_counter()
    config = arguments.ppo
    built_in = config.model_name == BUILT_IN
    if built_in:
        config.model_name = str(build_model(arguments))
    set_seed(config.seed)

    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLMWithValueHead.from_pretrained(config.model_name)
    trainer = PPOTrainer(config, model, create_reference_model(model), tokenizer)
    environment = TextEnvironment(
        trainer.model,
        tokenizer,
        tools={"Calculator": calculate},
        reward_fn=reward,
        prompt="" if built_in else PROMPT,
        max_turns=2,  # one to ask, one to answer
        generation_kwargs={
            "do_sample": True,
            "top_k": 0,
            "top_p": 1.0,
            "max_new_tokens": arguments.max_new_tokens,
        },
    )

    random_numbers = random.Random(config.seed)
    held_out = [draw_problem(random_numbers, held_out=True) for _ in range(arguments.held_out)]
    before = share_of_right_answers(environment, held_out)
    curve = train(trainer, environment, random_numbers)
    after = share_of_right_answers(environment, held_out)

    trainer.save_pretrained(str(arguments.output_dir / "model"))
    report(arguments, before, after, curve, time.perf_counter() - started)


def train(trainer: PPOTrainer, environment: TextEnvironment, random_numbers: random.Random) -> list[float]:
    """Draw problems, let the model work on them with the calculator, and make a step; the share of right answers in
    each."""
    curve = []
    progress = tqdm(range(trainer.config.total_ppo_epochs), desc="PPO")
    for _ in progress:
        problems = [draw_problem(random_numbers) for _ in range(trainer.config.batch_size)]
        queries, responses, masks, rewards, histories = run(environment, problems)
        # the mask leaves the calculator's replies out: the model is not trained to write them
        stats = trainer.step(queries, responses, rewards, masks)
        columns = {"query": [problem.question for problem in problems], "response": [h.text for h in histories]}
        trainer.log_stats(stats, columns, rewards)
        curve.append(float(stats["ppo/mean_scores"]))
        progress.set_postfix(right=f"{stats['ppo/mean_scores']:.2f}", KL=f"{stats['objective/kl']:.2f}")
    return curve


def run(environment: TextEnvironment, problems: list[Problem]) -> Any:
    """One episode for each problem."""
    return environment.run([problem.question for problem in problems], answers=[problem.answer for problem in problems])


def reward(texts: list[str], answers: list[str]) -> list[float]:
    """1 where the model's last turn holds the right result, 0 elsewhere."""
    return [float(is_right(text, answer)) for text, answer in zip(texts, answers, strict=True)]


def share_of_right_answers(environment: TextEnvironment, problems: list[Problem]) -> float:
    """How many of the problems the model solves, sampling as in training."""
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


def report(arguments: Arguments, before: float, after: float, curve: list[float], seconds: float) -> None:
    """Print the outcome and write summary.json."""
    summary = {
        "right_first": before,
        "right_last": after,
        "right_in_training": curve,
        "held_out": arguments.held_out,
        "steps": arguments.ppo.total_ppo_epochs,
        "seed": arguments.ppo.seed,
        "seconds": round(seconds, 1),
    }
    (arguments.output_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    gain = 100 * (after - before)
    print(f"right answers on held-out problems: {before:.1%} -> {after:.1%} ({gain:+.1f} points, {seconds:.0f} s)")


def read_arguments(words: list[str]) -> Arguments:
    """The command line. The defaults that suit the built-in model hold for no other one."""

    def parse(settings: dict[str, Any]) -> Arguments:
        return tyro.cli(
            Arguments, args=words, default=Arguments(PPOConfig(model_name=BUILT_IN, **settings)), description=__doc__
        )

    arguments = parse(BUILT_IN_SETTINGS)
    return arguments if arguments.ppo.model_name == BUILT_IN else parse({})


if __name__ == "__main__":
    main()
