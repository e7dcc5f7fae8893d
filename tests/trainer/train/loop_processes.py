"""RLOO and PPO with `train()` on two processes, and the same on one with the joined batch.

`launch(FOLDER, "ddp" or "fsdp2", SCRIPT)` of `tests.regressions.two_processes` starts both; each writes what it saw to
FOLDER. Answers depend on their prompt alone, and a batch is the whole data set, so that all see the same ones.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from tests import tiny
from tests.trainer.train import loops
from trl_step.models.sharding import gathered
from trl_step.sampling.sampler import Samples, repeated

SCRIPT = __file__
STEPS = 2
OPTIONS: dict[str, dict[str, Any]] = {
    "rloo": {"normalize_reward": True, "normalize_advantage": True, "missing_eos_penalty": 1.0},
    "ppo": {"whiten_rewards": True, "missing_eos_penalty": 1.0, "kl_estimator": "k3"},
}
MAKERS = {"rloo": loops.rloo, "ppo": loops.ppo}


def pinned(queries: list[torch.Tensor], n: int = 1) -> Samples:
    """Answers of 2 to 4 tokens that follow from the prompt and the number of the answer."""
    whole, group_ids = repeated(queries, n)
    responses = []
    for i, query in enumerate(whole):
        start = int(query.sum()) + 7 * (i % n)
        ids = [4 + (start * step) % 50 for step in range(1, 3 + start % 3)]
        responses.append(torch.tensor([*ids[:-1], tiny.EOS] if start % 2 else ids, device=query.device))
    return Samples(whole, responses, None, [int(one[-1]) == tiny.EOS for one in responses], 0, group_ids)


def run(kind: str, folder: Path, prompts: int, size: int, **options: Any) -> dict[str, Any]:
    """Two steps of a run whose batch is `prompts` rows, `size` answers on this process."""
    options = {"max_steps": STEPS, "per_device_train_batch_size": size, **OPTIONS[kind], **options}
    trainer = MAKERS[kind](folder, train_dataset=loops.prompts(prompts), **options)
    trainer.draw = pinned
    trainer.train()
    policy = trainer.accelerator.unwrap_model(trainer.model)
    with gathered(policy):
        found = tiny.weights(policy)
    log = [{k: v for k, v in entry.items() if k != "eps"} for entry in trainer.state.log_history]
    return {"log": log, "weights": found, "wrapped": type(trainer.model).__name__, "processes": trainer.args.world_size}


def resumed(folder: Path) -> bool:
    """Whether a run that was saved after its first step and resumed logs what the uninterrupted one does."""
    options = {"total_episodes": 16, "save_strategy": "steps", "save_steps": 1}
    whole = loops.ppo(folder, **options)
    whole.train()
    again = loops.ppo(folder, **options)
    again.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    logs = [[{k: v for k, v in e.items() if k != "eps"} for e in one.state.log_history] for one in (whole, again)]
    return logs[0] == logs[1] and len(logs[0]) == 2


def fails_on_one(folder: Path, rank: int) -> str:
    """What a process is told if the reward of process 0 fails."""

    def reward(texts: list[str]) -> list[float]:
        return [float("nan") if rank == 0 else 1.0] * len(texts)

    try:
        loops.rloo(folder, reward).train()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    size = {"rloo": 8, "ppo": 4}
    seen: dict[str, Any] = {kind: run(kind, folder / kind, 8, size[kind]) for kind in MAKERS}
    seen["resumed"] = resumed(folder / "resumed")
    seen["failed"] = fails_on_one(folder / "failed", rank)
    torch.save(seen, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
