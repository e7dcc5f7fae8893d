"""Stage 2: train a reward model on pairs of answers, of which one got more votes.

    python examples/stack_llama/reward_modeling.py                                            # the small Llama, offline
    python examples/stack_llama/reward_modeling.py --model_name ./llama-7b-se --bf16 True

Writes an adapter to `<output name>_peft_last_checkpoint`; merge it with merge_peft_adapter.py.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import assets
import torch
from common import HUB_POSTS, add_flags, fill_in, is_small, load_posts, load_tokenizer, new_scorer, text_of
from peft import LoraConfig, TaskType
from sentiment.building import one_line_if_interrupted
from transformers import TrainerCallback

from trl_step import RewardConfig, RewardTrainer

DEFAULTS = {
    "per_device_train_batch_size": (4, 16), "per_device_eval_batch_size": (1, 50),
    "gradient_accumulation_steps": (1, 1), "learning_rate": (2e-5, 2e-3), "weight_decay": (0.001, 0.001),
    "bf16": (True, False), "num_train_epochs": (1.0, 2.0), "train_subset": (100000, 0), "eval_subset": (50000, 0),
    "gradient_checkpointing": (False, False), "optim": ("adamw_torch", "adamw_torch"),
    "lr_scheduler_type": ("linear", "linear"), "max_length": (512, 128), "eval_first_step": (False, False),
    "seed": (0, 0), "resume_from_checkpoint": (False, False), "deepspeed": (None, None),
    "output_dir": (".", "runs/stack_llama"), "report_to": ("wandb", "none"),
}  # fmt: skip


class Result(NamedTuple):
    """The folder of the adapter, and how often it prefers the better answer of a held-out pair."""

    folder: Path
    accuracy: float


class EvaluateFirstStep(TrainerCallback):
    """One evaluation after the first update, to see early that it works."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            control.should_evaluate = True


def read_flags(words: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", default="", help="folder or hub name; without one a small Llama is built")
    parser.add_argument("--tokenizer_name", help="if it is not the model's")
    parser.add_argument("--dataset_name", default=HUB_POSTS, help="folder or hub name of the posts")
    parser.add_argument("--local_rank", type=int, default=-1, help="set by the launcher; has no effect")
    add_flags(parser, DEFAULTS)
    args = parser.parse_args(words)
    small = is_small(args.model_name)
    args.model_name = args.model_name or str(assets.default_assets().llama)
    return fill_in(args, DEFAULTS, small)


def main(words: Sequence[str] | None = None) -> Result:
    """Train, evaluate, save."""
    args = read_flags(words)
    tokenizer = load_tokenizer(args.tokenizer_name or args.model_name)
    model = new_scorer(args.model_name, dtype=torch.bfloat16 if args.bf16 else torch.float32)
    model.config.use_cache = not args.gradient_checkpointing
    name = f"{Path(args.model_name).name}_peft_stack-exchange-paired_rmts__{args.train_subset}_{args.learning_rate}"
    output = Path(args.output_dir) / name
    trainer = RewardTrainer(
        model,
        RewardConfig(
            output_dir=str(output),
            learning_rate=args.learning_rate,
            per_device_train_batch_size=args.per_device_train_batch_size,
            per_device_eval_batch_size=args.per_device_eval_batch_size,
            num_train_epochs=args.num_train_epochs,
            weight_decay=args.weight_decay,
            eval_strategy="steps",
            eval_steps=500,
            save_steps=500,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            **({"gradient_checkpointing": True} if args.gradient_checkpointing else {}),
            deepspeed=args.deepspeed,
            bf16=args.bf16,
            logging_steps=50,
            optim=args.optim,
            lr_scheduler_type=args.lr_scheduler_type,
            seed=args.seed,
            report_to=args.report_to,
            max_length=args.max_length,
            dataloader_pin_memory=torch.accelerator.is_available(),
        ),
        train_dataset=pairs(args, "data/reward", args.train_subset, tokenizer),
        eval_dataset=pairs(args, "data/evaluation", args.eval_subset, tokenizer),
        tokenizer=tokenizer,
        peft_config=LoraConfig(
            task_type=TaskType.SEQ_CLS, r=8, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear"
        ),
        callbacks=[EvaluateFirstStep()] if args.eval_first_step else None,
    )
    trainer.model.print_trainable_parameters()
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or None)
    accuracy = trainer.evaluate()["eval_accuracy"]
    folder = Path(f"{output}_peft_last_checkpoint")
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder)
    print(f"accuracy on held-out pairs: {accuracy:.3f}")
    return Result(folder, accuracy)


def pairs(args: Namespace, subset: str, count: int, tokenizer: Any) -> Any:
    """Rows of `chosen` and `rejected` texts that fit in `max_length`; the first `count` posts, or all if it is 0."""
    posts = load_posts(args.dataset_name, subset, is_small(args.model_name))
    if 0 < count < len(posts):
        posts = posts.select(range(count))
    rows = posts.map(
        lambda post: {
            "chosen": text_of(post["question"], post["response_j"]),
            "rejected": text_of(post["question"], post["response_k"]),
        },
        remove_columns=posts.column_names,
    )
    return rows.filter(
        lambda row: all(len(tokenizer(row[side])["input_ids"]) <= args.max_length for side in ("chosen", "rejected"))
    )


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
