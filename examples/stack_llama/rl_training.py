"""Stage 3: PPO against the reward model.

    python examples/stack_llama/rl_training.py --model_name runs/stack_llama/sft-merged \
        --reward_model_name runs/stack_llama/reward-merged
    accelerate launch examples/stack_llama/rl_training.py --model_name llama-7b-se --reward_model_name llama-7b-se-rm \
        --tokenizer_name meta-llama/Llama-2-7b-hf --batched_gen True --save_freq 100

Writes the adapter (and the value head) to `<output_dir>final`; merge it with merge_peft_adapter.py.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import HUB_POSTS, add_flags, fill_in, is_small, load_posts, load_tokenizer, loading, prompt_of, rewards_of
from peft import LoraConfig
from sentiment.building import one_line_if_interrupted
from tqdm.auto import tqdm
from transformers import Adafactor, AutoModelForSequenceClassification

from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl_step.core import LengthSampler

DEFAULTS = {
    "learning_rate": (1.41e-5, 1e-3), "output_max_length": (128, 64), "mini_batch_size": (1, 16),
    "batch_size": (32, 64), "ppo_epochs": (4, 2), "gradient_accumulation_steps": (4, 1), "adafactor": (False, False),
    "early_stopping": (False, False), "target_kl": (0.1, 0.1), "reward_baseline": (0.0, 0.0),
    "batched_gen": (False, True), "save_freq": (0, 0), "output_dir": ("runs/", "runs/stack_llama/rl/"),
    "seed": (0, 0), "steps": (20000, 4800), "init_kl_coef": (0.2, 0.05), "adap_kl_ctrl": (True, False),
    "load_in_8bit": (True, False), "log_with": (None, None),
}  # fmt: skip
SHORTEST_ANSWER = 32


def read_flags(words: Sequence[str] | None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model_name", required=True, help="the merged model of stage 1")
    parser.add_argument("--reward_model_name", required=True, help="the merged model of stage 2")
    parser.add_argument("--tokenizer_name", default="", help="if it is not the model's")
    parser.add_argument("--dataset_name", default=HUB_POSTS, help="folder or hub name of the posts")
    add_flags(parser, DEFAULTS)
    args = parser.parse_args(words)
    return fill_in(args, DEFAULTS, is_small(args.model_name))


def main(words: Sequence[str] | None = None) -> Path:
    """Train, save, and return the folder of the adapter."""
    args = read_flags(words)
    tokenizer = load_tokenizer(args.tokenizer_name or args.model_name)
    config = PPOConfig(
        steps=args.steps,
        model_name=args.model_name,
        learning_rate=args.learning_rate,
        log_with=args.log_with,
        batch_size=args.batch_size,
        mini_batch_size=args.mini_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        optimize_device_cache=True,
        early_stopping=args.early_stopping,
        target_kl=args.target_kl,
        ppo_epochs=args.ppo_epochs,
        seed=args.seed,
        init_kl_coef=args.init_kl_coef,
        adap_kl_ctrl=args.adap_kl_ctrl,
    )
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        config.model_name,
        peft_config=LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM", target_modules="all-linear"
        ),
        **loading(args.load_in_8bit),
    )
    optimizer = None
    if args.adafactor:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = Adafactor(
            trained, scale_parameter=False, relative_step=False, warmup_init=False, lr=config.learning_rate
        )
    trainer = PPOTrainer(
        config,
        model,
        ref_model=None,
        tokenizer=tokenizer,
        dataset=questions(args, tokenizer),
        data_collator=lambda rows: {name: [row[name] for row in rows] for name in rows[0]},
        optimizer=optimizer,
    )
    reward_model = AutoModelForSequenceClassification.from_pretrained(
        args.reward_model_name, num_labels=1, **loading(args.load_in_8bit)
    ).eval()
    if not args.load_in_8bit:
        reward_model.to(trainer.accelerator.device)
    train(trainer, reward_model, tokenizer, args)
    folder = Path(f"{args.output_dir}final")
    trainer.save_pretrained(str(folder))
    return folder


def questions(args: Namespace, tokenizer: Any) -> Any:
    """Rows of `query` and `input_ids` of fewer than 512 tokens."""
    posts = load_posts(args.dataset_name, "data/rl", is_small(args.model_name))
    posts = posts.select(range(min(100_000, len(posts))))
    rows = posts.map(
        lambda post: {
            "query": prompt_of(post["question"]),
            "input_ids": tokenizer(prompt_of(post["question"]), truncation=True)["input_ids"],
        },
        remove_columns=posts.column_names,
    )
    rows = rows.filter(lambda row: len(row["input_ids"]) < 512)
    rows.set_format(type="torch")
    return rows


def train(trainer: PPOTrainer, reward_model: Any, tokenizer: Any, args: Namespace) -> None:
    """Answer, score, step, until `steps` questions have been answered."""
    sampling: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": args.output_max_length}
    if not is_small(args.model_name):  # as in the original: a random length, unless an end token comes first
        sampling["length_sampler"] = LengthSampler(SHORTEST_ANSWER, args.output_max_length)
    updates = math.ceil(args.steps / args.batch_size)
    with tqdm(total=updates, desc="ppo") as progress:
        while progress.n < updates:
            for batch in trainer.dataloader:
                asked = batch["input_ids"]
                answered = trainer.generate(
                    asked, return_prompt=False, batch_size=len(asked) if args.batched_gen else 4, **sampling
                )
                batch["response"] = tokenizer.batch_decode(answered, skip_special_tokens=True)
                texts = [query + answer for query, answer in zip(batch["query"], batch["response"], strict=True)]
                scores = torch.tensor(rewards_of(reward_model, tokenizer, texts)) - args.reward_baseline
                stats = trainer.step(asked, answered, list(scores))
                trainer.log_stats(stats, batch, list(scores))
                progress.update()
                progress.set_postfix(score=f"{scores.mean():.2f}", kl=f"{float(stats['objective/kl']):.2f}")
                if args.save_freq and progress.n % args.save_freq == 0:
                    trainer.save_pretrained(f"{args.output_dir}step_{progress.n}")
                if progress.n == updates:
                    break


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
