"""The classic way in three stages: supervised tuning, a reward model from votes, PPO with `train()` against it.

    python examples/ppo/ppo_tldr.py     # `make demo-ppo`; under three minutes on two cores, offline

The flags are the fields of PPOConfig; `sft_model_path` and `reward_model_path` name models that exist already, which
leaves their stages out. Ends with the reward model's accuracy on held-out pairs, and the mean score of the first and of
the last steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    HfArgumentParser,
    TrainingArguments,
)

from trl_step import RewardConfig, RewardTrainer, SFTTrainer
from trl_step.experimental.ppo import PPOConfig, PPOTrainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "stack_llama"))
import assets
from common import HUB_POSTS, load_posts, new_scorer, prompt_of, text_of
from sentiment.building import one_line_if_interrupted
from votes import questions, rise_of

DEFAULTS = {
    "output_dir": "runs/ppo_tldr", "sft_model_path": "", "reward_model_path": "", "learning_rate": 5e-4,
    "per_device_train_batch_size": 64, "num_mini_batches": 2, "num_ppo_epochs": 2, "total_episodes": 1280,
    "response_length": 48, "temperature": 1.0, "kl_coef": 0.05, "missing_eos_penalty": 1.0,
    "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no", "num_sample_generations": 2,
    "per_device_eval_batch_size": 4, "seed": 0,
}  # fmt: skip
STAGE: dict[str, Any] = {
    "per_device_train_batch_size": 16, "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "report_to": "none",
    "save_strategy": "no", "logging_steps": 20,
}  # fmt: skip
SFT_STEPS, REWARD_STEPS = 60, 80


def tuned(source: str, tokenizer: Any, folder: Path, steps: int = SFT_STEPS) -> str:
    """Stage 1: a model that answers questions in their format; its folder."""
    posts = load_posts(HUB_POSTS, "data/finetune", small=True)
    rows = posts.map(lambda post: {"text": text_of(post["question"], post["response_j"]) + tokenizer.eos_token})
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(source),
        TrainingArguments(str(folder), max_steps=steps, **STAGE),
        train_dataset=rows.select_columns(["text"]),
        processing_class=tokenizer,
        dataset_text_field="text",
        max_seq_length=128,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def judge(source: str, tokenizer: Any, folder: Path, steps: int = REWARD_STEPS) -> tuple[str, float]:
    """Stage 2: a model that scores the answer with more votes higher; its folder, and its accuracy on other pairs."""

    def pairs(subset: str) -> Any:
        posts = load_posts(HUB_POSTS, subset, small=True)
        return posts.map(
            lambda post: {
                "prompt": prompt_of(post["question"]),
                "chosen": f" {post['response_j']}",
                "rejected": f" {post['response_k']}",
            },
            remove_columns=posts.column_names,
        )

    model = new_scorer(source)
    others = pairs("data/evaluation")
    trainer = RewardTrainer(
        model,
        RewardConfig(str(folder), max_length=160, max_steps=steps, **STAGE),
        train_dataset=pairs("data/reward"),
        eval_dataset=others.select(range(min(200, len(others)))),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder), trainer.evaluate()["eval_accuracy"]


def main(words: Sequence[str] | None = None, sft_steps: int = SFT_STEPS, reward_steps: int = REWARD_STEPS) -> str:
    """All stages that are needed; the last line."""
    parser = HfArgumentParser(PPOConfig)
    parser.set_defaults(**DEFAULTS)
    (config,) = parser.parse_args_into_dataclasses(words)
    base, folder, said = str(assets.default_assets().llama), Path(config.output_dir), ""
    tokenizer = AutoTokenizer.from_pretrained(config.sft_model_path or base)
    sft = config.sft_model_path or tuned(base, tokenizer, folder / "sft", sft_steps)
    reward = config.reward_model_path
    if not reward:
        reward, accuracy = judge(base, tokenizer, folder / "reward", reward_steps)
        said = f"reward model accuracy {accuracy:.3f}; "
    scorer, critic = (AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1) for _ in range(2))
    trainer = PPOTrainer(
        config,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(sft),
        AutoModelForCausalLM.from_pretrained(sft),
        scorer,
        questions(tokenizer, "data/rl"),
        critic,
        eval_dataset=questions(tokenizer, "data/evaluation", 8),
    )
    trainer.train()
    trainer.save_model(str(folder / "policy"))
    return f"{said}{rise_of(trainer.state.log_history)}; {folder / 'policy'}"


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
