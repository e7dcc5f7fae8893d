"""Tune a language model towards positive film reviews with PPO.

Without a network, in a few minutes on two cores; the first run builds a small model, a classifier and a corpus:

    python examples/sentiment/ppo_sentiment.py

Without a value head, by comparing four continuations of each beginning (or `rloo`):

    python examples/sentiment/ppo_sentiment.py --advantage_estimator grpo --answers_per_query 4

The classic run, with GPT-2 and IMDB from the hub:

    python examples/sentiment/ppo_sentiment.py --model_name lvwerra/gpt2-imdb --query_dataset stanfordnlp/imdb \
        --reward_model sentiment-analysis:lvwerra/distilbert-imdb

Every setting of PPOConfig and every field of `Arguments` below is an option; `--help` lists them.
"""

from __future__ import annotations

import json
import random
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from assets import DEFAULT_CACHE, AssetSettings, build_assets
from building import one_line_if_interrupted
from datasets import Dataset, load_dataset
from report import UNITS, Evaluation, check_packages, draw_curves, print_samples, write_summary
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

from trl_step import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    set_seed,
)

# The name of the model, data and classifier that `assets.py` builds.
BUILT_IN_NAMES: dict[str, Any] = {
    "model_name": "built-in",
    "query_dataset": "built-in",
    "reward_model": "sentiment-analysis:built-in",
}
# Suits the small built-in model. For another model the defaults are PPOConfig's own, which suit GPT-2.
BUILT_IN_SETTINGS: dict[str, Any] = {
    "steps": 60 * 64,  # samples, so 60 calls of `trainer.step`
    "batch_size": 64,
    "mini_batch_size": 32,
    "learning_rate": 3e-4,
}
DEFAULT_OUTPUT = Path("runs/sentiment")
DEFAULT_STATES = DEFAULT_OUTPUT / "states"


@dataclass
class Arguments:
    """Settings of the script."""

    ppo: Annotated[PPOConfig, tyro.conf.arg(name="")]
    assets: AssetSettings = field(default_factory=AssetSettings)
    """what to build if the built-in model, corpus or classifier is used"""
    cache_dir: Path = DEFAULT_CACHE
    """where they are stored"""
    output_dir: Path = DEFAULT_OUTPUT
    """folder for the summary, curves, tensorboard logs, the run's states and the tuned model"""
    max_new_tokens: int = 24
    """longest response, in tokens"""
    answers_per_query: int = 1
    """responses to each query in a batch; `grpo` and `rloo` compare them"""
    held_out: int = 64
    """queries from the split "test", to compare before and after"""
    use_seq2seq: bool = False
    """the model is an encoder-decoder"""
    use_peft: bool = False
    """train a LoRA adapter instead of the whole model"""
    lora_r: int = 16
    """rank of the adapter"""
    lora_alpha: int = 16
    """scale of the adapter"""
    resume_from: str | None = None
    """resume a run: "latest", or the folder of a state; --save_every saves them"""
    trust_remote_code: bool = False
    """run code from the model's repository"""


def main() -> None:
    arguments = read_arguments(sys.argv[1:])
    check_packages("rich", "matplotlib")
    started = time.perf_counter()
    prepare(arguments)
    config = arguments.ppo
    set_seed(config.seed)

    tokenizer = AutoTokenizer.from_pretrained(config.model_name, trust_remote_code=arguments.trust_remote_code)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model, ref_model = load_models(arguments)
    trainer = PPOTrainer(
        config,
        model,
        ref_model,
        tokenizer,
        dataset=load_queries(config.query_dataset, "train", tokenizer),
        data_collator=collate,
    )
    reward_model = RewardModel(config.reward_model, trainer.accelerator.device)
    held_out = collate(load_queries(config.query_dataset, "test", tokenizer, arguments.held_out))

    before = evaluate(trainer, reward_model, held_out, arguments)
    if arguments.resume_from:
        trainer.load_state(arguments.resume_from)  # "latest" loads nothing if there is no state yet
    history = train(trainer, reward_model, arguments)
    after = evaluate(trainer, reward_model, held_out, arguments)

    trainer.save_pretrained(str(arguments.output_dir / "model"))
    if trainer.accelerator.is_main_process:
        seconds = time.perf_counter() - started
        report(arguments, held_out["query"], before, after, history, seconds)


def train(trainer: PPOTrainer, reward_model: RewardModel, arguments: Arguments) -> list[dict[str, float]]:
    """The loop that this library is for: generate, score, step. Returns, of every step, the mean reward (a logit), the
    KL (nats per response) and the entropy (nats per token)."""
    warnings.filterwarnings("ignore", "no response of the last")  # responses are meant to be cut at max_new_tokens
    history = History(arguments.output_dir / "history.jsonl", trainer)
    progress = tqdm(batches(trainer), initial=trainer.steps_done, total=trainer.config.total_ppo_epochs, desc="PPO")
    for batch in progress:
        # 1. generate: continue each query, or continue some of them several times
        batch = several(batch, arguments.answers_per_query)
        responses = generate(trainer, batch["input_ids"], arguments)
        batch["response"] = trainer.tokenizer.batch_decode(responses, skip_special_tokens=True)

        # 2. score: the classifier's logit for "positive", of query and response together
        scores = reward_model.logits(join(batch["query"], batch["response"]))

        # 3. step: move the policy towards higher scores, not far from the reference
        stats = trainer.step(batch["input_ids"], responses, scores)
        trainer.log_stats(stats, batch, scores)

        numbers = {
            "reward": float(torch.stack(scores).mean()),
            "KL": float(stats["objective/kl"]),
            "entropy": float(stats["ppo/policy/entropy"]),
        }
        history.add(numbers)
        shown = {"logit" if name == "reward" else name: f"{value:.2f}" for name, value in numbers.items()}
        progress.set_postfix(shown)
    return history.steps


class History:
    """The numbers of every step, also in a file with one line for each, which a resumed run reads first."""

    def __init__(self, path: Path, trainer: PPOTrainer) -> None:
        written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.steps: list[dict[str, float]] = [json.loads(line) for line in written[: trainer.steps_done]]
        self.path = path if trainer.accelerator.is_main_process else None
        if self.path is not None:
            self.path.write_text("".join(json.dumps(numbers) + "\n" for numbers in self.steps), encoding="utf-8")

    def add(self, numbers: dict[str, float]) -> None:
        self.steps.append(numbers)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(numbers) + "\n")


def batches(trainer: PPOTrainer) -> Iterator[dict[str, list]]:
    """The remaining batches of `total_ppo_epochs`, from as many passes over the data as needed."""
    left = trainer.config.total_ppo_epochs - trainer.steps_done
    while left > 0:
        for batch in trainer.dataloader:
            yield batch
            left -= 1
            if left == 0:
                return


def several(batch: dict[str, list], times: int) -> dict[str, list]:
    """The first rows of a batch, each `times` times: as many rows as before, or as near to that as `times` allows."""
    return {name: [row for row in rows[: len(rows) // times] for _ in range(times)] for name, rows in batch.items()}


def generate(trainer: PPOTrainer, queries: list[torch.Tensor], arguments: Arguments) -> list[torch.Tensor]:
    """Sample a response [R_i] to each query [Q_i] from the policy's own distribution, without excluding any token."""
    return trainer.generate(
        queries,
        return_prompt=False,
        do_sample=True,
        top_k=0,
        top_p=1.0,
        max_new_tokens=arguments.max_new_tokens,
    )


def evaluate(
    trainer: PPOTrainer, reward_model: RewardModel, held_out: dict[str, list], arguments: Arguments
) -> Evaluation:
    """Respond to the held-out queries, and compute how positive the texts are."""
    responses = generate(trainer, held_out["input_ids"], arguments)
    texts = trainer.tokenizer.batch_decode(responses, skip_special_tokens=True)
    return Evaluation(texts, reward_model.probabilities(join(held_out["query"], texts)))


def join(queries: list[str], responses: list[str]) -> list[str]:
    """Each query followed by its response."""
    return [query + response for query, response in zip(queries, responses, strict=True)]


class RewardModel:
    """A text classifier with a class POSITIVE. `name` is "task:model", for example
    "sentiment-analysis:lvwerra/distilbert-imdb"."""

    def __init__(self, name: str, device: torch.device) -> None:
        task, colon, model = name.partition(":")
        if not colon:
            raise ValueError(f"reward_model={name!r} must be written as task:model, as in sentiment-analysis:{name}")
        self.pipe = pipeline(task, model=model, device=device)

    def logits(self, texts: list[str]) -> list[torch.Tensor]:
        """The logit of POSITIVE for each text, 0-d: a reward without an upper limit."""
        return [torch.tensor(score) for score in self._positive(texts, function_to_apply="none")]

    def probabilities(self, texts: list[str]) -> list[float]:
        """The probability of POSITIVE for each text."""
        return self._positive(texts, function_to_apply="softmax")

    def _positive(self, texts: list[str], function_to_apply: str) -> list[float]:
        classes = self.pipe(texts, top_k=None, function_to_apply=function_to_apply, batch_size=16, truncation=True)
        return [{entry["label"]: entry["score"] for entry in scores}["POSITIVE"] for scores in classes]


def load_queries(name: str, split: str, tokenizer: Any, number: int | None = None) -> Dataset:
    """Beginnings of reviews, 2 to 8 tokens long, as `input_ids` (tensors) and `query` (text); the same for every seed.

    `number` draws that many at random: IMDB is sorted by label.
    """
    reviews = load_dataset(name, split=split)
    reviews = reviews.filter(lambda review: len(review["text"]) >= 200)
    if number is not None:
        reviews = reviews.shuffle(seed=0).select(range(number))

    def cut(review: dict[str, Any], index: int) -> dict[str, Any]:
        length = random.Random(index).randint(2, 8)
        # cut generously first, or the tokenizer warns of texts that are too long for the model
        input_ids = tokenizer(review["text"], truncation=True, max_length=32)["input_ids"][:length]
        return {"input_ids": input_ids, "query": tokenizer.decode(input_ids)}

    queries = reviews.map(cut, with_indices=True)
    queries.set_format("torch")
    return queries


def collate(samples: Any) -> dict[str, list]:
    """Columns of a batch from its samples; the queries differ in length, so they stay lists."""
    return {column: [sample[column] for sample in samples] for column in ("input_ids", "query")}


def load_models(arguments: Arguments) -> tuple[Any, Any]:
    """The policy, with a value head if the advantages need one, and the frozen reference: None with LoRA, whose
    reference is the base model."""
    with_head = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)
    plain = (AutoModelForCausalLM, AutoModelForSeq2SeqLM)
    needs_values = arguments.ppo.advantage_estimator == "gae"
    model_class: Any = (with_head if needs_values else plain)[arguments.use_seq2seq]
    options: dict[str, Any] = {"trust_remote_code": arguments.trust_remote_code}
    if not arguments.use_peft:
        model = model_class.from_pretrained(arguments.ppo.model_name, **options)
        return model, create_reference_model(model)
    from peft import LoraConfig, get_peft_model

    task = "SEQ_2_SEQ_LM" if arguments.use_seq2seq else "CAUSAL_LM"
    lora = LoraConfig(r=arguments.lora_r, lora_alpha=arguments.lora_alpha, bias="none", task_type=task)
    if not needs_values:
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated|fan_in_fan_out is set"
        )  # PEFT acts
        return get_peft_model(model_class.from_pretrained(arguments.ppo.model_name, **options), lora), None
    return model_class.from_pretrained(arguments.ppo.model_name, peft_config=lora, **options), None


def report(
    arguments: Arguments,
    queries: list[str],
    before: Evaluation,
    after: Evaluation,
    history: list[dict[str, float]],
    seconds: float,
) -> None:
    """Print the samples and the result; write summary.json and curves.png."""
    summary = {
        "reward_first": before.mean,
        "reward_last": after.mean,
        "kl_last": history[-1]["KL"],
        "seconds": round(seconds, 1),
        "steps": len(history),
        "seed": arguments.ppo.seed,
        "held_out": len(queries),
        "distinct_responses": len(set(after.responses)),
    }
    write_summary(arguments.output_dir / "summary.json", summary)
    draw_curves(history, arguments.output_dir / "curves.png", {**UNITS, "reward": "mean logit of POSITIVE"})
    print_samples(queries, before, after)
    print(f"mean probability of a positive review: {before.mean:.3f} -> {after.mean:.3f} ({summary['seconds']:.0f} s)")


def read_arguments(words: list[str]) -> Arguments:
    """The command line. The defaults that suit the built-in model apply to no other one."""

    def parse(settings: dict[str, Any]) -> Arguments:
        config = PPOConfig(**BUILT_IN_NAMES, log_with="tensorboard", save_dir=str(DEFAULT_STATES), **settings)
        default = Arguments(ppo=config)
        return tyro.cli(Arguments, args=words, default=default, description=__doc__)

    arguments = parse(BUILT_IN_SETTINGS)
    return arguments if arguments.ppo.model_name == BUILT_IN_NAMES["model_name"] else parse({})


def prepare(arguments: Arguments) -> None:
    """Build everything named "built-in", and replace the name by its folder."""
    config = arguments.ppo
    if config.save_dir == str(DEFAULT_STATES):
        config.save_dir = str(arguments.output_dir / DEFAULT_STATES.name)
    config.project_kwargs.setdefault("logging_dir", str(arguments.output_dir / "tensorboard"))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if not any(getattr(config, setting) == name for setting, name in BUILT_IN_NAMES.items()):
        return
    assets = build_assets(arguments.assets, arguments.cache_dir)
    folders = {
        "model_name": str(assets.model),
        "query_dataset": str(assets.reviews),
        "reward_model": f"sentiment-analysis:{assets.classifier}",
    }
    for setting, name in BUILT_IN_NAMES.items():
        if getattr(config, setting) == name:
            setattr(config, setting, folders[setting])


if __name__ == "__main__":
    with one_line_if_interrupted(can_resume=True):
        main()
