"""Runs that are played in one go, and in two parts with a save between them.

`main(FOLDER)` plays the first part of every case and saves it to FOLDER.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig

from tests.tiny import config, tokenizer, with_value_head
from tests.trainer.runs.state_tools import everything
from trl_step import PPOTrainer

ROOT = Path(__file__).parents[3]
STEPS = 5
ROWS = 20
"""In batches of 8: two batches a pass, and a few rows left over."""


@dataclass
class Case:
    """`saved_after`: steps before the save, so many that it falls into the middle or onto the end of a pass"""

    options: dict[str, Any] = field(default_factory=dict)
    model: str = "gpt2"
    lora: bool = False
    shared: int | None = None
    scheduler: bool = False
    saved_after: int = 3
    between_passes: bool = False
    """save after the pass, not in the loop's body"""


CASES = {
    "plain": Case(),
    "end of a pass": Case(saved_after=2),
    "between two passes": Case(saved_after=2, between_passes=True),
    "before the first step": Case(saved_after=0, between_passes=True),
    "lora": Case(lora=True),
    "scores": Case({"use_score_scaling": True, "use_score_norm": True, "score_clip": 1.0}),
    "scheduler": Case(scheduler=True, saved_after=1),
    "accumulation": Case({"mini_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}),
    "shared layers": Case(shared=1),
    "everything": Case(
        {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "use_score_scaling": True, "whiten_rewards": True,
         "early_stopping": True, "gradient_checkpointing": True, "exact_v07": True},
        lora=True, scheduler=True,
    ),
    "t5": Case(model="t5"),
    "best score": Case({"push_to_hub_if_best_kwargs": {"repo_id": "me/best"}, "compare_steps": 2}),
}  # fmt: skip


class Rows(torch.utils.data.Dataset):
    """Prompts that are drawn anew each time, from all three streams."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [random.randint(4, 59), int(np.random.randint(4, 60)), int(torch.randint(4, 60, ()))]
        return {"index": index, "input_ids": torch.tensor([4 + index, *drawn])}


def collate(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def build(case: Case, **more: Any) -> PPOTrainer:
    """A trainer with dropout, a KL coefficient that moves, and, with a scheduler, an optimizer of the script's own."""
    lora = LoraConfig(r=4, lora_dropout=0.1, task_type="CAUSAL_LM", fan_in_fan_out=True)
    model = with_value_head(case.model, dropout=0.1, **({"peft_config": lora} if case.lora else {}))
    optimizer = scheduler = None
    if case.scheduler:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS)
    settings = config(**{"ppo_epochs": 2, "horizon": 50, "target": 0.1, **case.options, **more})
    return PPOTrainer(
        settings,
        model,
        None,
        tokenizer(),
        dataset=Rows(),
        data_collator=collate,
        num_shared_layers=case.shared,
        optimizer=optimizer,
        lr_scheduler=scheduler,
    )


def train(ours: PPOTrainer, case: Case, save_to: Path | None = None) -> list[dict[str, Any]]:
    """Pass over the data until `STEPS` steps are done, or until it was saved: what each step saw and gave."""
    seen: list[dict[str, Any]] = []

    def saved(between: bool) -> bool:
        due = save_to is not None and ours.steps_done == case.saved_after and between == case.between_passes
        if due:
            ours.save_state(save_to)
        return due

    while ours.steps_done < STEPS and not saved(between=True):
        for batch in ours.dataloader:
            seen.append({"rows": batch["index"], **step(ours, batch["input_ids"])})
            if saved(between=False) or ours.steps_done == STEPS:
                return seen
    return seen


def step(ours: PPOTrainer, queries: list[torch.Tensor]) -> dict[str, float]:
    """Generate, score with some luck, step."""
    sampling = {"return_prompt": False, "do_sample": True, "top_k": 0, "max_new_tokens": 4}
    responses = ours.generate(queries, **sampling)
    scores = [random.gauss(float(len(set(response.tolist()))), 1.0) for response in responses]
    with warnings.catch_warnings(), mock.patch("huggingface_hub.HfApi", side_effect=ConnectionError):
        warnings.filterwarnings("ignore", "the KL divergence|the push to")
        stats = ours.step(queries, responses, scores)
    return {key: value for key, value in stats.items() if isinstance(value, float) and "time/" not in key}


def outcome(ours: PPOTrainer) -> dict[str, Any]:
    """All that a further step would depend on."""
    return everything(ours) | {
        "counters": (ours.steps_done, ours.dataloader.iteration),
        "best": float(ours._best.reward),
    }


def main(folder: Path) -> None:
    for name, case in CASES.items():
        train(build(case), case, save_to=folder / name)
