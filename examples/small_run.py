"""Shared by the examples with a small model: their command line, and the output of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro
from sentiment.report import check_packages, draw_curves, write_summary
from transformers import AutoTokenizer

from trl_step import PPOConfig, PPOTrainer, set_seed

BUILT_IN = "built-in"
"""The name of the model that an example builds."""
SAMPLING: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0}
"""From the policy's own distribution, without excluding any token."""

Arguments = TypeVar("Arguments")


def read_arguments(kind: type[Arguments], settings: dict[str, Any], words: list[str], description: str) -> Arguments:
    """The command line `words` as a `kind`, whose first field is a PPOConfig named `ppo`.

    `settings` of PPOConfig are the defaults for the built-in model only.

    Raises:
        ImportError: the package that draws the curves is missing; raised before anything is trained.
    """
    check_packages("matplotlib")

    def parse(settings: dict[str, Any]) -> Any:
        default = kind(PPOConfig(model_name=BUILT_IN, **settings))  # type: ignore[call-arg]
        return tyro.cli(kind, args=words, default=default, description=description)

    arguments = parse(settings)
    return arguments if arguments.ppo.model_name == BUILT_IN else parse({})


def make_trainer(config: PPOConfig, model_class: Any, build: Callable[[], Path]) -> PPOTrainer:
    """A trainer for the model that `config` names, or for the one in the folder that `build` gives.

    Args:
        model_class: loads the policy; a frozen copy of it is the reference
    """
    if config.model_name == BUILT_IN:
        config.model_name = str(build())
    set_seed(config.seed)
    tokenizer = AutoTokenizer.from_pretrained(config.model_name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return PPOTrainer(config, model_class.from_pretrained(config.model_name), None, tokenizer)


def numbers_of(stats: dict[str, Any]) -> dict[str, float]:
    """The plotted values of a step: mean reward, KL to the reference (nats per episode), entropy (nats per token)."""
    return {
        "reward": float(stats["ppo/mean_scores"]),
        "KL": float(stats["objective/kl"]),
        "entropy": float(stats["ppo/policy/entropy"]),
    }


def write_outcome(
    trainer: PPOTrainer, folder: Path, history: list[dict[str, float]], summary: dict[str, Any], started: float
) -> dict[str, Any]:
    """Write the tuned model, curves.png of the steps in `history`, and summary.json into `folder`; the summary.

    Args:
        summary: completed with the number of steps, the seed, and the seconds since `started` (of `time.perf_counter`)
    """
    trainer.save_pretrained(str(folder / "model"))
    draw_curves(history, folder / "curves.png")
    whole = {
        **summary,
        "steps": len(history),
        "seed": trainer.config.seed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_summary(folder / "summary.json", whole)
    return whole
