"""Shared by the examples with a small model: their command line, and the output of a run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TypeVar

import tyro
from sentiment.report import check_packages, draw_curves, write_summary

from trl_step import PPOConfig, PPOTrainer

BUILT_IN = "built-in"
"""The name of the model that an example builds."""

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
