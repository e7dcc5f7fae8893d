"""Does a long run grow? 500 steps of a small model with tools, automatic saves and log writers on.

python benchmarks/soak.py
python benchmarks/soak.py --quick    # only to see that it works

Prints resident memory and open file handles during the run. Exits with status 1 if, at the end, the memory is more
than 5 % above that after step 50, or the number of handles differs.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")

import psutil
import torch
from report import RESULTS, save, show
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, TextEnvironment, set_seed

CONTROL = ("<request>", "<calculator>", "<call>", "<response>", "<submit>")
MOST_GROWTH = 0.05
SAMPLES = 16


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per digit, sign and control string."""
    words = ["<pad>", "</s>", *"0123456789+= "]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def task(rng: random.Random) -> tuple[str, str]:
    """A sum and its answer."""
    one, two = rng.randint(0, 9), rng.randint(0, 9)
    return f"{one}+{two}=", str(one + two)


def make_model(tokenizer: Any, updates: int) -> GPT2LMHeadModel:
    """A model trained on `updates` batches of worked examples, so that it calls its tool."""
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=64, n_layer=3, n_head=4, n_positions=128, eos_token_id=1)
    for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
        setattr(config, rate, 0.0)
    model = GPT2LMHeadModel(config).train()
    optimizer, rng = torch.optim.Adam(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(updates):
        tasks = [task(rng) for _ in range(32)]
        texts = [f"{q}<request><calculator>{q[:-1]}<call>{a}<response>{a}<submit>" for q, a in tasks]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def calculator(query: str) -> str:
    """Adds numbers; what the model writes may be anything."""
    return str(sum(int(number) for number in query.split("+")))


def right(texts: list[str], answers: list[str]) -> list[float]:
    """1 for the right answer after the tool's reply."""
    return [float(text.strip().startswith(answer + "<submit>")) for text, answer in zip(texts, answers, strict=True)]


def resident() -> dict[str, float]:
    """Of this process, after garbage collection."""
    gc.collect()
    process = psutil.Process()
    return {
        "MB": process.memory_info().rss / 2**20,
        "handles": process.num_fds(),
        "threads": process.num_threads(),
    }


def soak(steps: int, every: int, updates: int, log_with: list[str], folder: Path) -> list[dict[str, float]]:
    """Train, and measure every `every` steps."""
    set_seed(0)
    config = PPOConfig(
        batch_size=SAMPLES,
        mini_batch_size=SAMPLES // 2,
        steps=steps * SAMPLES,
        learning_rate=1e-4,
        log_with=log_with,  # type: ignore[arg-type]
        log_arrays=True,
        project_kwargs={"logging_dir": str(folder / "logs")},
        tracker_kwargs={"wandb": {"dir": str(folder)}},
        save_every=10,
        save_dir=str(folder / "states"),
        keep_last=2,
    )
    tokenizer = make_tokenizer()
    policy = AutoModelForCausalLMWithValueHead.from_pretrained(make_model(tokenizer, updates))
    trainer = PPOTrainer(config, policy, None, tokenizer)
    environment = TextEnvironment(
        trainer.model,
        tokenizer,
        tools={"calculator": calculator},
        reward_fn=right,
        max_turns=2,
        generation_kwargs={"do_sample": True, "top_k": 0, "max_new_tokens": 12},
    )
    rng, rows, calls, scored, began = random.Random(1), [], 0, 0.0, time.perf_counter()
    for step in range(1, steps + 1):
        tasks = [task(rng) for _ in range(SAMPLES)]
        questions, answers = [q for q, _ in tasks], [a for _, a in tasks]
        queries, responses, masks, rewards, histories = environment.run(questions, answers=answers)
        stats = trainer.step(queries, responses, rewards, masks)
        texts = [history.text for history in histories]
        trainer.log_stats(stats, {"query": questions, "response": texts}, rewards)
        calls += sum("<response>" in text for text in texts)
        scored += sum(map(float, rewards))
        if step % every == 0:
            seconds = time.perf_counter() - began
            row = {"step": step, **resident(), "calls": calls / step / SAMPLES, "score": scored / step / SAMPLES}
            rows.append({**row, "seconds": seconds})
            print({key: round(value, 2) for key, value in rows[-1].items()}, flush=True)
    trainer.accelerator.end_training()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--log_with", nargs="*", default=["tensorboard", "wandb"])
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    updates = 200
    if args.quick:
        args.steps, args.every, updates = 6, 2, 20
    with tempfile.TemporaryDirectory() as folder:
        rows = soak(args.steps, args.every, updates, args.log_with, Path(folder))
    first, last = rows[0], rows[-1]
    growth = last["MB"] / first["MB"] - 1
    show(
        f"soak: {args.steps} steps of {SAMPLES} episodes with a tool, a save every 10, {' and '.join(args.log_with)}",
        ["step", "resident MB", "file handles", "threads", "episodes with a tool call", "mean score", "s"],
        [
            [f"{row[key]:.{digits}f}" for key, digits in
             (("step", 0), ("MB", 1), ("handles", 0), ("threads", 0), ("calls", 2), ("score", 2), ("seconds", 0))]
            for row in rows
        ],
    )  # fmt: skip
    holds = growth <= MOST_GROWTH and first["handles"] == last["handles"]
    print(f"memory {growth:+.1%} from step {first['step']:.0f} on, handles {last['handles'] - first['handles']:+.0f}")
    if not args.quick:
        save("soak", {"log_with": args.log_with, "growth": growth, "holds": holds, "rows": rows}, args.output)
    return 0 if holds or args.quick else 1


if __name__ == "__main__":
    sys.exit(main())
