"""Trains the sentiment task with one contender, in a fresh process, until the held-out texts are positive, and prints
one line of JSON.

Runs in every library's environment, so beside the library it only uses torch and transformers. What is not the
library's is the same code for all: prompts, scores, clock, and what is measured on the held-out prompts.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    logging,
    set_seed,
)

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


class Clock:
    """Wall and processor seconds of training, and of parts of it. Nothing counts while it is stopped."""

    def __init__(self) -> None:
        self.seconds = {"all": [0.0, 0.0], "sampling": [0.0, 0.0], "scoring": [0.0, 0.0]}
        self.began = (0.0, 0.0)
        self.running = False

    def start(self) -> None:
        self.began, self.running = now(), True

    def stop(self) -> None:
        self.running = False
        self.add("all", self.began)

    def add(self, part: str, began: tuple[float, float]) -> None:
        self.seconds[part] = [
            total + end - begin for total, end, begin in zip(self.seconds[part], now(), began, strict=True)
        ]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = now()
        yield
        if self.running:
            self.add(name, began)


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class Task:
    """The model's tokenizer, the classifier, and the prompts of a job."""

    def __init__(self, job: dict[str, Any]) -> None:
        with open(job["prompts"], encoding="utf-8") as file:
            prompts = json.load(file)
        self.train: list[str] = prompts["train"]
        self.held_out: list[str] = prompts["held_out"]
        self.tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
        self.words = AutoTokenizer.from_pretrained(job["classifier"])
        self.classifier = AutoModelForSequenceClassification.from_pretrained(job["classifier"]).eval()
        self.positive = self.classifier.config.label2id["POSITIVE"]

    @torch.no_grad()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """The classifier's output [B, 2]."""
        return self.classifier(**self.words(texts, truncation=True, padding=True, return_tensors="pt")).logits

    def scores(self, texts: list[str]) -> list[torch.Tensor]:
        """The logit of POSITIVE for each text: what is trained."""
        return list(self.logits(texts)[:, self.positive])

    def probabilities(self, texts: list[str]) -> torch.Tensor:
        """The probability of POSITIVE for each text [B]: what is to reach the goal."""
        return self.logits(texts).softmax(dim=1)[:, self.positive]


class Course:
    """Measures the policy on the held-out prompts after every batch, outside the clock and the run's random stream."""

    def __init__(self, job: dict[str, Any], task: Task, clock: Clock) -> None:
        self.job, self.task, self.clock = job, task, clock
        self.reference = AutoModelForCausalLM.from_pretrained(job["model"]).eval()
        self.inputs = task.tokenizer(task.held_out, padding=True, return_tensors="pt")
        self.points: list[dict[str, float]] = []

    @property
    def reached(self) -> bool:
        """The texts are as positive as wanted, and the policy is still near the reference."""
        return self.points[-1]["reward"] >= self.job["goal"] and self.points[-1]["kl"] <= self.job["most_kl"]

    @property
    def ended(self) -> bool:
        """The goal is reached, or so many batches were not enough."""
        return self.reached or len(self.points) > self.job["most_batches"]

    def measure(self, model: torch.nn.Module) -> None:
        """Add a point: mean reward, KL to the reference (nats per response), share of texts that differ."""
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            rows = model.generate(**self.inputs, **SAMPLING, max_new_tokens=self.job["new_tokens"])
            kl = self.kl(model, rows)
        model.train(was_training)
        texts = self.task.tokenizer.batch_decode(rows, skip_special_tokens=True)
        wall, cpu = self.clock.seconds["all"]
        self.points.append(
            {
                "samples": len(self.points) * self.job["batch"],
                "wall": round(wall, 3),
                "cpu": round(cpu, 3),
                "reward": round(self.task.probabilities(texts).mean().item(), 4),
                "kl": round(kl, 2),
                "distinct": len(set(texts)) / len(texts),
            }
        )

    def kl(self, model: torch.nn.Module, rows: torch.Tensor) -> float:
        """Mean over the responses of the sum of log-prob minus the reference's, up to the first end."""
        width = self.inputs["input_ids"].shape[1]
        new = rows[:, width:]
        ended = (new == self.task.tokenizer.eos_token_id).int().cumsum(dim=1)
        counts = (ended == 0) | ((ended == 1) & (new == self.task.tokenizer.eos_token_id))
        attention = torch.cat([self.inputs["attention_mask"], counts.long()], dim=1)
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)

        def logprobs(of: torch.nn.Module) -> torch.Tensor:
            logits = of(rows, attention_mask=attention, position_ids=positions).logits[:, width - 1 : -1]
            return logits.log_softmax(dim=-1).gather(2, new.unsqueeze(2)).squeeze(2)

        return ((logprobs(model) - logprobs(self.reference)) * counts).sum(dim=1).mean().item()


def batches(prompts: list[str], size: int, group: int, seed: int) -> Iterator[list[str]]:
    """Batches of `size` texts, endlessly, in a new order in every round; each prompt `group` times."""
    draw = random.Random(seed)
    while True:
        order = draw.sample(prompts, len(prompts))
        for start in range(0, len(order) - size // group + 1, size // group):
            yield [prompt for prompt in order[start : start + size // group] for _ in range(group)]


def train_by_steps(library: Any, job: dict[str, Any], task: Task, course: Course) -> None:
    """`PPOTrainer` of trl_step, or of TRL up to 0.11: generate, score, step."""
    config = library.PPOConfig(
        batch_size=job["batch"], mini_batch_size=job["mini_batch"], ppo_epochs=job["epochs"],
        learning_rate=job["learning_rate"], seed=job["seed"], accelerator_kwargs={"cpu": True}, **job["settings"],
    )  # fmt: skip
    kind = library.AutoModelForCausalLMWithValueHead if job["algorithm"] == "gae" else AutoModelForCausalLM
    trainer = library.PPOTrainer(config, kind.from_pretrained(job["model"]), None, task.tokenizer)
    policy = getattr(trainer.model, "pretrained_model", trainer.model)
    options = {**SAMPLING, "max_new_tokens": job["new_tokens"], "pad_token_id": task.tokenizer.pad_token_id}
    options |= {"batch_size": job["together"]} if job["together"] else {}
    clock = course.clock
    course.measure(policy)
    for prompts in batches(task.train, job["batch"], job["group"], job["seed"]):
        clock.start()
        queries = [torch.tensor(ids) for ids in task.tokenizer(prompts)["input_ids"]]
        with clock.part("sampling"):
            responses = trainer.generate(queries, return_prompt=False, **options)
        texts = task.tokenizer.batch_decode(responses, skip_special_tokens=True)
        with clock.part("scoring"):
            scores = task.scores([prompt + text for prompt, text in zip(prompts, texts, strict=True)])
        trainer.step(queries, responses, scores)
        clock.stop()
        course.measure(policy)
        if course.ended:
            return


def train_as_a_whole(library: Any, job: dict[str, Any], task: Task, course: Course) -> None:
    """`GRPOTrainer` or `RLOOTrainer` of TRL from 1.0 on: `train()`, which samples, scores and updates.

    The clock runs from the begin of an update to its end: the first update of a batch also samples and scores.
    """
    from datasets import Dataset

    clock = course.clock
    name = job["algorithm"].upper()
    updates = job["epochs"] * job["batch"] // job["mini_batch"]

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            clock.start()

        def on_step_end(self, args, state, control, **kwargs):
            clock.stop()
            if state.global_step % updates == 0:
                course.measure(trainer.model)
                control.should_training_stop = course.ended

    def reward(prompts, completions, **_):
        with clock.part("scoring"):
            texts = [prompt + text for prompt, text in zip(prompts, completions, strict=True)]
            return [float(score) for score in task.scores(texts)]

    with tempfile.TemporaryDirectory() as folder:
        config = getattr(library, f"{name}Config")(
            output_dir=folder, per_device_train_batch_size=job["mini_batch"], num_generations=job["group"],
            steps_per_generation=job["batch"] // job["mini_batch"], num_iterations=job["epochs"],
            max_steps=updates * job["most_batches"], max_completion_length=job["new_tokens"],
            temperature=SAMPLING["temperature"], top_k=SAMPLING["top_k"], top_p=SAMPLING["top_p"],
            learning_rate=job["learning_rate"], lr_scheduler_type="constant", seed=job["seed"],
            bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            model_init_kwargs={"dtype": "float32"}, **job["settings"],
        )  # fmt: skip
        trainer = getattr(library, f"{name}Trainer")(
            job["model"],
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_dict({"prompt": task.train}),
            processing_class=task.tokenizer,
            callbacks=[Watch()],
        )
        generate = trainer.model.generate

        def timed(*arguments, **options):
            with clock.part("sampling"):
                return generate(*arguments, **options)

        trainer.model.generate = timed
        course.measure(trainer.model)
        trainer.train()


def version(name: str) -> str:
    return getattr(importlib.import_module(name), "__version__", None) or metadata.version(name)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    library = importlib.import_module(job["library"])
    set_seed(job["seed"])
    task, clock = Task(job), Clock()
    course = Course(job, task, clock)
    by_steps = job["library"] == "trl_step" or job["algorithm"] == "gae"
    (train_by_steps if by_steps else train_as_a_whole)(library, job, task, course)
    seconds = clock.seconds
    update = [total - drawn - scored for total, drawn, scored in zip(*seconds.values(), strict=True)]
    result = {
        "reached": course.reached,
        "parts": {name: seconds[name] for name in ("sampling", "scoring")} | {"update": update},
        "course": course.points,
        "versions": {name: version(name) for name in (job["library"], "torch", "transformers")},
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
