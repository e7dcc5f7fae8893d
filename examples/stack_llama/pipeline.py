"""All stages with the small Llama, offline: base model, supervised tuning, reward model, PPO, and the result.

    python examples/stack_llama/pipeline.py     # `make stack-llama`; some minutes on two cores

Ends with one line: the reward model's accuracy on held-out pairs, and the mean reward of answers to held-out questions
before and after PPO, with the standard deviation before.
"""

from __future__ import annotations

import statistics
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import assets
import merge_peft_adapter
import reward_modeling
import rl_training
import supervised_finetuning
import torch
from common import HUB_POSTS, load_posts, load_tokenizer, prompt_of, rewards_of, sample_of
from sentiment.building import one_line_if_interrupted
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


class Outcome(NamedTuple):
    """The numbers of the last line, and the folder of the tuned model."""

    accuracy: float
    before: float
    deviation: float
    after: float
    folder: Path

    def __str__(self) -> str:
        gain = (self.after - self.before) / self.deviation
        return (
            f"reward model accuracy {self.accuracy:.3f}; mean reward of answers "
            f"{self.before:.2f} (sd {self.deviation:.2f}) -> {self.after:.2f}: {gain:+.2f} sd; {self.folder}"
        )


def main(words: Sequence[str] | None = None) -> Outcome:
    """Run the stages one after the other, as a user would type them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("runs/stack_llama"))
    parser.add_argument("--questions", type=int, default=300, help="held-out questions answered at the end")
    for stage in ("sft", "reward", "rl"):
        parser.add_argument(f"--{stage}", default="", help=f"more flags for the {stage} stage, in one string")
    args = parser.parse_args(words)
    if args.questions < 2:
        parser.error("--questions must be at least 2: one reward has no standard deviation")
    base, runs = assets.default_assets().llama, args.output_dir

    adapter = supervised_finetuning.main(["--output_dir", f"{runs}/sft", *args.sft.split()])
    tuned = merge(adapter, base, runs / "sft-merged")
    reward = reward_modeling.main(["--model_name", str(base), "--output_dir", str(runs), *args.reward.split()])
    judge = merge(reward.folder, base, runs / "reward-merged")
    names = ["--model_name", str(tuned), "--reward_model_name", str(judge), "--output_dir", f"{runs}/rl/"]
    policy = merge(rl_training.main([*names, *args.rl.split()]), tuned, runs / "rl-merged")

    before, after = (answer_rewards(folder, judge, args.questions) for folder in (tuned, policy))
    deviation = statistics.stdev(before)
    return Outcome(reward.accuracy, statistics.mean(before), deviation, statistics.mean(after), policy)


def merge(adapter: Path, base: Path, output: Path) -> Path:
    """The base model with the adapter merged into it."""
    names = {"adapter_model_name": adapter, "base_model_name": base, "output_name": output}
    return merge_peft_adapter.main([f"--{name}={value}" for name, value in names.items()])


def answer_rewards(folder: Path, judge: Path, count: int) -> list[float]:
    """The reward of a sampled answer to each of `count` held-out questions, from a plain transformers model."""
    tokenizer = load_tokenizer(str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reward_model = AutoModelForSequenceClassification.from_pretrained(judge, dtype=torch.float32).eval()
    posts = load_posts(HUB_POSTS, "data/evaluation", small=True)
    queries = [prompt_of(question) for question in sample_of(sorted(set(posts["question"])), count)]
    torch.manual_seed(0)
    texts = [query + answer for query, answer in zip(queries, answers_of(model, tokenizer, queries), strict=True)]
    for text in texts[:3]:
        print(text.replace("\n\n", "  "))
    return rewards_of(reward_model, tokenizer, texts)


@torch.no_grad()
def answers_of(model: Any, tokenizer: Any, queries: list[str], batch_size: int = 50) -> list[str]:
    """One sampled answer per query."""
    answers: list[str] = []
    for start in range(0, len(queries), batch_size):
        tokens = tokenizer(queries[start : start + batch_size], padding=True, padding_side="left", return_tensors="pt")
        written = model.generate(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], do_sample=True, top_k=0,
            max_new_tokens=64, pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        answers += tokenizer.batch_decode(written[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


if __name__ == "__main__":
    with one_line_if_interrupted():
        print(main())
