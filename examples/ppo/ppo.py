"""PPO with `train()`: answers to questions about programming, rewarded by a function, with a separate critic.

    python examples/ppo/ppo.py     # under three minutes on two cores, offline

The flags are the fields of PPOConfig and ModelConfig; `--use_peft True` trains an adapter. Ends with the mean score of
the first and of the last steps. `ppo_tldr.py` has a trained reward model in place of the function.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from trl_step import ModelConfig, get_peft_config
from trl_step.experimental.ppo import PPOConfig, PPOTrainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "stack_llama"))
import assets
from common import new_scorer
from sentiment.building import one_line_if_interrupted
from votes import questions, rise_of, score_votes

DEFAULTS = {
    "output_dir": "runs/ppo", "learning_rate": 1e-3, "per_device_train_batch_size": 64, "num_mini_batches": 2,
    "num_ppo_epochs": 2, "total_episodes": 1280, "response_length": 40, "temperature": 1.0, "kl_coef": 0.03,
    "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no", "num_sample_generations": 2,
    "per_device_eval_batch_size": 4, "seed": 0,
}  # fmt: skip


def main(words: Sequence[str] | None = None) -> str:
    """Train, save, and return the last line."""
    parser = HfArgumentParser((PPOConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    config, model_config = parser.parse_args_into_dataclasses(words)
    source = model_config.model_name_or_path or str(assets.default_assets().llama)
    tokenizer = AutoTokenizer.from_pretrained(source)
    critic = new_scorer(source)
    trainer = PPOTrainer(
        config,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(source),
        None,  # a frozen copy, or the model without its adapter
        score_votes,
        questions(tokenizer, "data/rl"),
        critic,
        eval_dataset=questions(tokenizer, "data/evaluation", 8),
        peft_config=get_peft_config(model_config),
    )
    trainer.train()
    trainer.save_model()
    return f"{rise_of(trainer.state.log_history)}; {config.output_dir}"


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
