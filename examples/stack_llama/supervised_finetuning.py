"""Stage 1: tune a base model on questions with their answers.

    python examples/stack_llama/supervised_finetuning.py                                     # the small Llama, offline
    python examples/stack_llama/supervised_finetuning.py --model_path meta-llama/Llama-2-7b-hf --streaming --bf16

Writes an adapter to `<output_dir>/final_checkpoint`; merge it with merge_peft_adapter.py.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import assets
import torch
from common import HUB_POSTS, add_flags, fill_in, is_small, load_posts, load_tokenizer, loading, text_of
from peft import LoraConfig
from sentiment.building import one_line_if_interrupted
from transformers import AutoModelForCausalLM, TrainingArguments

from trl_step import SFTTrainer
from trl_step.trainer import ConstantLengthDataset

DEFAULTS = {
    "size_valid_set": (4000, 100), "shuffle_buffer": (5000, 5000), "seq_length": (1024, 128),
    "max_steps": (10000, 250), "batch_size": (4, 16), "gradient_accumulation_steps": (1, 1),
    "learning_rate": (1e-4, 3e-3), "lr_scheduler_type": ("cosine", "cosine"), "num_warmup_steps": (100, 20),
    "weight_decay": (0.05, 0.0), "seed": (0, 0), "log_freq": (1, 100), "eval_freq": (1000, 250),
    "save_freq": (1000, 1000), "load_in_8bit": (True, False), "report_to": ("wandb", "none"),
    "output_dir": ("./checkpoints", "runs/stack_llama/sft"),
}  # fmt: skip


def read_flags(words: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_path", default="", help="folder or hub name; without one a small Llama is built")
    parser.add_argument("--dataset_name", default=HUB_POSTS, help="folder or hub name of the posts")
    parser.add_argument("--subset", default="data/finetune")
    parser.add_argument("--split", default="train")
    parser.add_argument("--eos_token_id", type=int, help="separates the texts, for tokenizers that have no such token")
    parser.add_argument("--num_workers", type=int)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the launcher; has no effect")
    for switch in ("streaming", "fp16", "bf16", "gradient_checkpointing"):
        parser.add_argument(f"--{switch}", action="store_true")
    add_flags(parser, DEFAULTS)
    args = parser.parse_args(words)
    small = is_small(args.model_path)
    args.model_path = args.model_path or str(assets.default_assets().llama)
    return fill_in(args, DEFAULTS, small)


def main(words: Sequence[str] | None = None) -> Path:
    """Train, save, and return the folder of the adapter."""
    args = read_flags(words)
    tokenizer = load_tokenizer(args.model_path)
    train_rows, valid_rows = split_posts(args)
    characters = characters_per_token(train_rows, tokenizer)
    print(f"{characters:.2f} characters per token")
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(args.model_path, **loading(args.load_in_8bit)),
        TrainingArguments(
            output_dir=args.output_dir,
            dataloader_drop_last=True,
            eval_strategy="steps",
            eval_steps=args.eval_freq,
            save_steps=args.save_freq,
            logging_steps=args.log_freq,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            per_device_eval_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            lr_scheduler_type=args.lr_scheduler_type,
            warmup_steps=args.num_warmup_steps,
            gradient_accumulation_steps=args.gradient_accumulation_steps,
            **({"gradient_checkpointing": True} if args.gradient_checkpointing else {}),
            fp16=args.fp16,
            bf16=args.bf16,
            weight_decay=args.weight_decay,
            seed=args.seed,
            report_to=args.report_to,
            run_name="llama-7b-finetuned",
            ddp_find_unused_parameters=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
        ),
        train_dataset=packed(train_rows, tokenizer, args, characters, infinite=True),
        eval_dataset=packed(valid_rows, tokenizer, args, characters, infinite=False),
        tokenizer=tokenizer,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM", target_modules="all-linear"
        ),
        packing=True,
        max_seq_length=args.seq_length,
    )
    trainer.model.print_trainable_parameters()
    trainer.train()
    folder = Path(args.output_dir) / "final_checkpoint"
    if trainer.is_world_process_zero():
        trainer.model.save_pretrained(folder)
    return folder


def split_posts(args: Namespace) -> tuple[Any, Any]:
    """Rows to train on and rows to evaluate on."""
    options = {"streaming": True} if args.streaming else {"num_proc": args.num_workers}
    small = is_small(args.model_path)
    posts = load_posts(args.dataset_name, args.subset, small, split=args.split, **options)
    if args.streaming:
        rest = posts.skip(args.size_valid_set)
        return rest.shuffle(buffer_size=args.shuffle_buffer, seed=args.seed), posts.take(args.size_valid_set)
    parts = posts.train_test_split(test_size=args.size_valid_set if small else 0.005, seed=args.seed)
    return parts["train"], parts["test"]


def characters_per_token(rows: Any, tokenizer: Any, count: int = 400) -> float:
    """Mean over the first `count` texts: how much text fills a packed row."""
    texts = [text_of(row["question"], row["response_j"]) for row, _ in zip(rows, range(count), strict=False)]
    return sum(map(len, texts)) / sum(map(len, tokenizer(texts)["input_ids"]))


def packed(rows: Any, tokenizer: Any, args: Namespace, characters: float, infinite: bool) -> ConstantLengthDataset:
    """The texts, concatenated and cut into rows of `seq_length` tokens."""
    return ConstantLengthDataset(
        tokenizer,
        rows,
        formatting_func=lambda row: text_of(row["question"], row["response_j"]),
        infinite=infinite,
        seq_length=args.seq_length,
        chars_per_token=characters,
        eos_token_id=args.eos_token_id or 0,
    )


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
