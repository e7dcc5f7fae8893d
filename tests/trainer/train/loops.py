"""Small runs of the trainers with `train()`, for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GPT2ForSequenceClassification

from tests import tiny
from trl_step import PPOv2Config, PPOv2Trainer, RLOOConfig, RLOOTrainer
from trl_step.experimental.ppo import PPOConfig, PPOTrainer

SHORT: dict[str, Any] = {
    "use_cpu": True,
    "per_device_train_batch_size": 4,
    "num_ppo_epochs": 2,
    "total_episodes": 8,
    "response_length": 5,
    "temperature": 1.0,
    "learning_rate": 1e-2,
    "num_sample_generations": 0,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}


def prompts(count: int = 12) -> Dataset:
    """Rows of 1 to 3 tokens, and a word."""
    rows = [[4 + i % 20, 5 + i % 3, 6 + i % 7][: 1 + i % 3] for i in range(count)]
    return Dataset.from_dict({"input_ids": rows, "word": [f"w{i}" for i in range(count)]})


def different_words(texts: list[str]) -> list[float]:
    """A reward that differs from answer to answer."""
    return [len(set(text.split())) + 0.1 * len(text) for text in texts]


def policy(seed: int = 0) -> Any:
    """GPT-2 with two small layers."""
    torch.manual_seed(seed)
    return tiny.gpt2()


def classifier(seed: int = 1) -> Any:
    """One score at each position."""
    torch.manual_seed(seed)
    config = tiny.gpt2().config
    config.num_labels = 1
    return GPT2ForSequenceClassification(config)


def rloo(folder: Path, reward: Any = different_words, **options: Any) -> RLOOTrainer:
    """A trainer of `policy()`."""
    parts = {name: options.pop(name) for name in ("callbacks", "eval_dataset", "data_collator") if name in options}
    model, rows = options.pop("policy", None) or policy(), options.pop("train_dataset", None) or prompts()
    config = RLOOConfig(str(folder), **{**SHORT, **options})
    return RLOOTrainer(config, tiny.tokenizer("left"), model, None, reward, rows, **parts)


def ppo(folder: Path, reward: Any = different_words, critic: bool = True, **options: Any) -> PPOTrainer:
    """A trainer of `policy()` with a separate critic, or with a value head."""
    parts = {name: options.pop(name) for name in ("callbacks", "eval_dataset", "peft_config") if name in options}
    model, rows = options.pop("model", None) or policy(), options.pop("train_dataset", None) or prompts()
    config = PPOConfig(str(folder), **{**SHORT, **options})
    value_model = classifier(2) if critic else None
    return PPOTrainer(config, tiny.tokenizer("left"), model, None, reward, rows, value_model, **parts)


def ppov2(folder: Path, **options: Any) -> PPOv2Trainer:
    """The same under the names of 0.11."""
    config = PPOv2Config(str(folder), **{**SHORT, **options})
    return PPOv2Trainer(
        config=config, tokenizer=tiny.tokenizer("left"), policy=policy(), ref_policy=None, reward_model=different_words,
        train_dataset=prompts(), value_model=classifier(2),
    )  # fmt: skip


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Of the policy, and its critic."""
    return tiny.weights(trainer.accelerator.unwrap_model(trainer.model))


def kept(monkeypatch: Any, trainer: Any) -> list[Any]:
    """What `step` is given from now on, and returns: (arguments, named arguments, statistics) of each step."""
    found: list[Any] = []
    step = trainer.step_trainer.step

    def watched(*arguments: Any, **named: Any) -> Any:
        stats = step(*arguments, **named)
        found.append((arguments, named, stats))
        return stats

    monkeypatch.setattr(trainer.step_trainer, "step", watched)
    return found
