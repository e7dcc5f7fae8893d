"""Saving a trainer's policy to a folder, and pushing that folder to a hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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

{what}

```python
{code}
```
"""

_SHOWN = """
    model_name advantage_estimator policy_loss learning_rate batch_size mini_batch_size gradient_accumulation_steps
    ppo_epochs init_kl_coef adap_kl_ctrl target kl_penalty kl_in gamma lam cliprange cliprange_value vf_coef temperature
    seed exact_v07
"""


_BY = "by [trl_step](https://pypi.org/project/trl-step/)"
_WHAT = {
    "head": f"A language model tuned with PPO {_BY}, with its value head.",
    "critic": f"A language model tuned with PPO {_BY}; the critic, a model of its own, is in the folder `value_model`.",
    "none": f"A language model tuned by reinforcement learning {_BY}.",
}
_PLAIN_CODE = """from transformers import {plain}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = {plain}.from_pretrained("{place}")"""
_HEAD_CODE = """from transformers import {plain}, AutoTokenizer
from trl_step import {plain}WithValueHead

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = {plain}WithValueHead.from_pretrained("{place}")  # with the value head, to train on
model = {plain}.from_pretrained("{place}")  # without it, to generate"""


MODEL_CARD_TEMPLATE = _CARD.format(
    name="{model_name}",
    what=_WHAT["head"],
    code=_HEAD_CODE.format(plain="AutoModelForCausalLM", place="{model_id}"),
)
"""A card for scripts that write their own: its `format` takes `model_name` and `model_id`, as release 0.7's did."""


def write_model_card(
    path: str, model_name: str, config: PPOConfig, values: Literal["head", "critic", "none"] = "head"
) -> None:
    """Write `path`/README.md; the folder is made if need be.

    Args:
        values: where those of the saved policy come from
    """
    plain = f"AutoModelFor{'Seq2SeqLM' if config.is_encoder_decoder else 'CausalLM'}"

    def text(place: str) -> str:
        code = (_HEAD_CODE if values == "head" else _PLAIN_CODE).format(plain=plain, place=place)
        card = _CARD.format(name=model_name, what=_WHAT[values], code=code)
        return f"{card}\n{settings_table(config, _SHOWN.split())}"

    write_readme(path, text)


def write_readme(path: str, text: Callable[[str], str]) -> None:
    """Write `path`/README.md, whose text is made from the folder's name; the folder is made if need be."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text(folder.name), encoding="utf-8")


def settings_table(config: Any, names: Iterable[str]) -> str:
    """Markdown: the fields `names` of `config` under a title."""
    rows = "\n".join(f"| {name} | {_public(getattr(config, name))} |" for name in names)
    return f"## Settings\n\n| field | value |\n|---|---|\n{rows}\n"


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
