"""Saving a trainer's policy to a folder, and pushing that folder to a hub."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from trl_step.models.sharding import is_sharded
from trl_step.trainer.ppo_config import PPOConfig

_CARD = """---
library_name: transformers
tags:
- trl-step
- ppo
- reinforcement-learning
---

# {name}

A language model tuned with PPO by [trl_step](https://pypi.org/project/trl-step/), with its value head.

```python
from transformers import {plain}, AutoTokenizer
from trl_step import {wrapper}

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = {wrapper}.from_pretrained("{place}")  # with the value head, to train on
model = {plain}.from_pretrained("{place}")  # without it, to generate
```

## Settings

| field | value |
|---|---|
{settings}
"""

_SHOWN = """
    model_name learning_rate batch_size mini_batch_size gradient_accumulation_steps ppo_epochs init_kl_coef
    adap_kl_ctrl target kl_penalty gamma lam cliprange cliprange_value vf_coef temperature seed exact_v07
"""


def write_model_card(path: str, model_name: str, config: PPOConfig) -> None:
    """Write `path`/README.md; the folder is made if need be."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    plain = f"AutoModelFor{'Seq2SeqLM' if config.is_encoder_decoder else 'CausalLM'}"
    settings = "\n".join(f"| {name} | {getattr(config, name)} |" for name in _SHOWN.split())
    card = _CARD.format(
        name=model_name, plain=plain, wrapper=f"{plain}WithValueHead", place=folder.name, settings=settings
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def save(trainer: Any, folder: str, push_to_hub: bool = False, repo_id: str | None = None, **kwargs: Any) -> None:
    """Save on the main process; all processes wait for it."""
    _write(trainer, str(folder))
    trainer.accelerator.wait_for_everyone()
    if push_to_hub:
        push(trainer, repo_id or Path(folder).name, **kwargs)


def _write(trainer: Any, folder: str) -> None:
    """Every process calls it; those that only lend their part of the weights write nothing."""
    if trainer.accelerator.is_main_process or is_sharded(trainer.accelerator.unwrap_model(trainer.model)):
        trainer._save_pretrained(folder)


def push(
    trainer: Any,
    repo_id: str,
    commit_message: str = "Policy trained with trl_step",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    **upload_kwargs: Any,
) -> str:
    """Create `repo_id` if need be and upload what `save_pretrained` writes, on the main process.

    Returns:
        the address of the commit, "" on other processes
    """
    from huggingface_hub import HfApi

    address = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            _write(trainer, folder)
            if trainer.accelerator.is_main_process:
                api = HfApi(token=token)
                repo = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
                address = api.upload_folder(
                    repo_id=repo,
                    folder_path=folder,
                    commit_message=commit_message,
                    revision=branch,
                    create_pr=create_pr,
                    **upload_kwargs,
                )
    finally:  # the other processes wait, also for a push that fails
        trainer.accelerator.wait_for_everyone()
    return str(address)


def push_if_best(trainer: Any, scores: torch.Tensor) -> None:
    """With `config.push_to_hub_if_best_kwargs`: push every `config.compare_steps` steps if the batch's mean score,
    over all processes, is the best so far.

    Args:
        scores: [B]
    """
    best = trainer._best
    if best is None:
        return
    if best.compare_step % trainer.config.compare_steps == 0:
        total, count = trainer._reduce_sum(torch.stack((scores.sum(), scores.new_tensor(len(scores)))))
        mean = (total / count).cpu()
        if mean > best.highest_reward:
            best.highest_reward = mean
            push_without_failing(trainer)
    best.compare_step += 1


def push_without_failing(trainer: Any) -> None:
    """Push with `config.push_to_hub_if_best_kwargs`; a failure is told and does not lose the step."""
    try:
        trainer.push_to_hub(**trainer.push_to_hub_kwargs)
    except Exception as error:
        warnings.warn(
            f"the push to {trainer.push_to_hub_kwargs['repo_id']} failed and training goes on: {error}",
            UserWarning,
            stacklevel=6,
        )
