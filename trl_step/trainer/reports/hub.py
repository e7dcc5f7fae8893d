"""Saving a trainer's policy to a folder, and pushing that folder to a hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trl_step.models.checkpoints import names_folder
from trl_step.models.notices import warn_user
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes

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
    settings = "\n".join(f"| {name} | {_public(getattr(config, name))} |" for name in _SHOWN.split())
    card = _CARD.format(
        name=model_name, plain=plain, wrapper=f"{plain}WithValueHead", place=folder.name, settings=settings
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def _public(value: Any) -> Any:
    """`value`; of a folder on this machine only the last part of its path."""
    return Path(value).name if isinstance(value, str) and names_folder(value) else value


Write = Callable[[str], None]
"""Writes policy, value head, tokenizer and model card into a folder; every process calls it."""


def save(processes: Processes, write: Write, folder: str) -> None:
    """Save into `folder`; all processes wait until it is written."""
    write(folder)
    processes.wait()


def push(
    processes: Processes,
    write: Write,
    repo_id: str,
    commit_message: str = "Policy trained with trl_step",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    **upload_kwargs: Any,
) -> str:
    """Create `repo_id` if need be and upload what `write` writes, on the main process.

    Returns:
        the address of the commit, "" on other processes
    """
    from huggingface_hub import HfApi

    address = ""
    try:
        with tempfile.TemporaryDirectory() as folder:
            write(folder)
            if processes.is_main:
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
        processes.wait()
    return str(address)


@dataclass
class BestScore:
    """The best mean score of a batch so far, and when to look for a better one."""

    reward: torch.Tensor = field(default_factory=lambda: torch.tensor(-float("inf")))
    """0-d"""
    compare_step: int = 0
    """steps seen"""

    def sees(self, scores: torch.Tensor, processes: Processes, compare_steps: int) -> bool:
        """Whether this batch is the best; only every `compare_steps` batches are compared.

        Args:
            scores: [B], of this process; the mean is over all
        """
        is_best = False
        if self.compare_step % compare_steps == 0:
            total, count = processes.sum(torch.stack((scores.sum(), scores.new_tensor(len(scores)))))
            mean = (total / count).cpu()
            is_best = bool(mean > self.reward)
            self.reward = mean if is_best else self.reward
        self.compare_step += 1
        return is_best

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from."""
        return {"reward": self.reward, "compare_step": self.compare_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.reward, self.compare_step = state["reward"].clone(), state["compare_step"]


def push_without_failing(push_to_hub: Callable[..., str], repo_id: str, **kwargs: Any) -> None:
    """Push; a failure warns and does not lose the step."""
    try:
        push_to_hub(repo_id=repo_id, **kwargs)
    except Exception as error:
        warn_user(f"the push to {repo_id} failed and training goes on: {error}")
