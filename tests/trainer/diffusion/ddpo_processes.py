"""An epoch of `DDPOTrainer`, played as one of two processes, or alone on the joined samples.

`launch(FOLDER, "ddp", SCRIPT)` of `tests.regressions.two_processes` starts both; each writes what it saw to FOLDER.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from tests import tiny_diffusion
from trl_step import DDPOTrainer
from trl_step.trainer.diffusion.samples import DenoisingSamples, joined

SCRIPT = __file__
COUNT = 8
REWARDS = [3.0, 1.0, 2.0, 5.0, 4.0, 9.0, 7.0, 8.0]
STEADY = {"train_adam_epsilon": 1e-2}


def reward(images: Any, prompts: Any, metadata: Any) -> tuple[list[float], dict]:
    return [REWARDS[number] for number in metadata], {}


def fails_on_the_second(images: Any, prompts: Any, metadata: Any) -> tuple[list[float], dict]:
    if 4 in metadata:
        raise KeyError("no judge")
    return reward(images, prompts, metadata)


def build(folder: Path, rows: slice, **options: Any) -> DDPOTrainer:
    """A trainer that is given these of eight samples, and takes all of its own in one update."""
    count = rows.stop - rows.start
    ours = tiny_diffusion.trainer(
        folder, **{"reward": reward, "sample_batch_size": 4, "train_batch_size": count, **STEADY, **options}
    )
    torch.manual_seed(1)
    whole = joined(ours._generate_samples(2, 4)[0])
    own = DenoisingSamples(*(tensor[rows] for tensor in whole))
    numbers = tuple(range(COUNT))[rows]
    ours._generate_samples = lambda *given: (  # type: ignore[method-assign]
        [own], [[None, tuple(f"prompt {number % 2}" for number in numbers), numbers]]
    )  # fmt: skip
    return ours


def play(folder: Path, rows: slice) -> dict[str, Any]:
    """One epoch; the weights, what was logged, and a checkpoint that was loaded again."""
    seen: dict[str, Any] = {}
    for name, options in {"plain": {}, "prompts": {"per_prompt_stat_tracking": True}}.items():
        options = {**options, "per_prompt_stat_tracking_min_count": 2}
        ours = build(folder / name, rows, **options)
        logged: list[dict[str, Any]] = []
        ours._trackers.log = lambda values, step, logged=logged: logged.append(values)  # type: ignore[method-assign]
        ours.step(0, 0)
        again = build(folder / name, rows, **options, resume_from=str(folder / name))
        weights = [parameter.detach().clone() for parameter in ours.trainable_layers]
        loaded = all(torch.equal(p, w) for p, w in zip(again.trainable_layers, weights, strict=True))
        numbers = {key: value for values in logged for key, value in values.items() if key != "reward"}
        seen[name] = {"weights": weights, "logged": numbers, "loaded": loaded}
    return seen


def refused(folder: Path, rows: slice) -> str:
    """What is raised if the reward function fails on the second process alone."""
    try:
        build(folder, rows, reward=fails_on_the_second).step(0, 0)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    rank = int(os.environ["RANK"])
    rows = slice(4 * rank, 4 * rank + 4)
    own = tiny_diffusion.trainer(folder / "own")._generate_samples(1, 2)[0][0].latents
    seen = {"refused": refused(folder / "refused", rows), "own": own, **play(folder, rows)}
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
