"""A run whose state an earlier version of this package has written, into `data/state-format-1`.

`python old_states.py FOLDER` plays the run up to the save. The committed state is of the commit "Add the processes of a
trainer and the counters of a run as objects of their own"; write it anew only with another format.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from tests.tiny import IDS, config, tokenizer
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer

STATE = Path(__file__).parent / "data" / "state-format-1"
STEPS = 3
"""Two batches of the first pass, and one of the second."""


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor([4 + index, 5, 6])


def build() -> PPOTrainer:
    """A model of 561 weights, with a scheduler, and with everything else that a state may hold on one process."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=4, n_layer=1, n_head=1, n_positions=16, **IDS))
    )
    with torch.no_grad():  # exact on every machine, as a state names its reference by a checksum
        for i, parameter in enumerate(model.parameters()):
            numbers = torch.arange(parameter.numel()).reshape(parameter.shape)
            parameter.copy_((numbers * (2 * i + 3) % 17 - 8) / 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    settings = config(use_score_scaling=True, horizon=50, target=0.1, push_to_hub_if_best_kwargs={"repo_id": "me/best"})
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    return PPOTrainer(settings, model, None, tokenizer(), Rows(), optimizer=optimizer, lr_scheduler=scheduler)


def play(ours: PPOTrainer, batches: Any, save_to: Path | None = None) -> list[list[int]]:
    """Step on every batch, and save after step number `STEPS`; the first tokens of each batch."""
    seen = []
    for batch in batches:
        seen.append(batch[:, 0].tolist())
        scores = [float(query[0]) for query in batch]
        with warnings.catch_warnings(), mock.patch("huggingface_hub.HfApi", side_effect=ConnectionError):
            warnings.simplefilter("ignore", UserWarning)
            ours.step(list(batch), list(batch.flip(1)), scores)
        if save_to is not None and ours.steps_done == STEPS:
            ours.save_state(save_to)
            break
    return seen


def main(folder: Path) -> None:
    ours = build()
    ours._budget.most_samples = 3
    while ours.steps_done < STEPS:
        play(ours, ours.dataloader, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
