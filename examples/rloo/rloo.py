"""RLOO with `train()`: answers to questions about programming, rewarded by a function.

    python examples/rloo/rloo.py     # `make demo-rloo`; under three minutes on two cores, offline
    python examples/rloo/rloo.py --learning_rate 1e-3 --rloo_k 8 --resume True

The flags are the fields of RLOOConfig and ModelConfig. Ends with the mean score of the first and of the last steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser

from trl_step import ModelConfig, RLOOConfig, RLOOTrainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "stack_llama"))
import assets
from sentiment.building import one_line_if_interrupted
from votes import questions, rise_of, score_votes

DEFAULTS = {
    "output_dir": "runs/rloo", "learning_rate": 1e-3, "per_device_train_batch_size": 32, "rloo_k": 4,
    "gradient_accumulation_steps": 2, "num_ppo_epochs": 2, "total_episodes": 1280, "response_length": 40,
    "temperature": 1.0, "kl_coef": 0.03, "lr_scheduler_type": "constant", "report_to": "none", "save_strategy": "no",
    "num_sample_generations": 2, "per_device_eval_batch_size": 4, "local_rollout_forward_batch_size": 64, "seed": 0,
}  # fmt: skip


@dataclass
class Options:
    """What is not of RLOO."""

    resume: bool = field(default=False, metadata={"help": "go on from the newest checkpoint in output_dir"})


def main(words: Sequence[str] | None = None) -> str:
    """Train, save, and return the last line."""
    parser = HfArgumentParser((Options, RLOOConfig, ModelConfig))
    parser.set_defaults(**DEFAULTS)
    options, config, model_config = parser.parse_args_into_dataclasses(words)
    source = model_config.model_name_or_path or str(assets.default_assets().llama)
    tokenizer = AutoTokenizer.from_pretrained(source)
    trainer = RLOOTrainer(
        config,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(source),
        None,  # a frozen copy is the reference
        score_votes,
        questions(tokenizer, "data/rl"),
        eval_dataset=questions(tokenizer, "data/evaluation", 8),
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model()
    return f"{rise_of(trainer.state.log_history)}; {config.output_dir}"


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
