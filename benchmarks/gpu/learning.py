"""Section of gpu_check.py: the sentiment example's model learns, in float32 and in bf16.

The example's own model, corpus and classifier, built here without a network; its loop without datasets and tyro. The
mean probability of a positive review of 64 held-out beginnings must reach 0.9.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import Section
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, set_seed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "sentiment"
WANTED = 0.9
SIZES: dict[str, Any] = {"steps": 60, "batch": 64, "mini_batch": 32, "held_out": 64}
TINY: dict[str, Any] = {"steps": 2, "batch": 8, "mini_batch": 4, "held_out": 8}
SMALL_ASSETS = {"train_reviews": 200, "test_reviews": 50, "vocabulary": 400, "layers": 1, "width": 32,
                "model_updates": 5, "classifier_updates": 5}  # fmt: skip


class Scorer:
    """The example's reward: the logit of POSITIVE."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).to(device).eval()
        self.column = self.model.config.label2id["POSITIVE"]

    @torch.no_grad()
    def logits(self, texts: list[str]) -> torch.Tensor:
        """[B, classes]"""
        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.model.device)
        return self.model(**batch).logits.float()

    def scores(self, texts: list[str]) -> torch.Tensor:
        return self.logits(texts)[:, self.column]

    def probability(self, texts: list[str]) -> float:
        return float(self.logits(texts).softmax(dim=1)[:, self.column].mean())


def beginnings(file: Path, tokenizer: Any) -> list[torch.Tensor]:
    """2 to 8 tokens of each review of at least 200 characters."""
    texts = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    rows = tokenizer([text for text in texts if len(text) >= 200])["input_ids"]
    return [torch.tensor(row[: random.Random(i).randint(2, 8)]) for i, row in enumerate(rows)]


def train(section: Section, assets: Any, precision: str, sizes: dict[str, Any]) -> tuple[float, float, float]:
    """The held-out mean before and after, and the seconds of the loop."""
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(assets.model)
    config = PPOConfig(
        batch_size=sizes["batch"], mini_batch_size=sizes["mini_batch"], learning_rate=3e-4,
        accelerator_kwargs={"cpu": not section.on_gpu, "mixed_precision": precision},
    )  # fmt: skip
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(assets.model))
    trainer = PPOTrainer(config, model, None, tokenizer)
    scorer = Scorer(assets.classifier, section.device)
    queries = beginnings(assets.reviews / "train.jsonl", tokenizer)
    held_out = beginnings(assets.reviews / "test.jsonl", tokenizer)[: sizes["held_out"]]

    def answer(prompts: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[str]]:
        responses = trainer.generate(
            prompts, return_prompt=False, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=24
        )
        whole = [torch.cat((q.to(r.device), r)) for q, r in zip(prompts, responses, strict=True)]
        return responses, tokenizer.batch_decode(whole, skip_special_tokens=True)

    before = scorer.probability(answer(held_out)[1])
    start = time.perf_counter()
    for _ in range(sizes["steps"]):
        prompts = [queries[i] for i in np.random.randint(len(queries), size=sizes["batch"])]
        responses, texts = answer(prompts)
        trainer.step(prompts, responses, list(scorer.scores(texts)))
    seconds = time.perf_counter() - start
    return before, scorer.probability(answer(held_out)[1]), seconds


def main() -> None:
    section = Section()
    sys.path.insert(0, str(EXAMPLE))
    from assets import AssetSettings, build_assets

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        assets = build_assets(AssetSettings(**(SMALL_ASSETS if section.tiny else {})), Path(folder))
        section.figure("building model, corpus and classifier on the CPU", time.perf_counter() - start, "s")
        for name, precision in (("float32", "no"), ("bf16", "bf16")):
            with section.attempt(f"learning, {name}"):
                before, after, seconds = train(section, assets, precision, TINY if section.tiny else SIZES)
                section.figure(f"{name}: seconds of the loop", seconds, "s")
                section.figure(f"{name}: held-out mean at the start", before)
                section.figure(f"{name}: held-out mean at the end", after)
                if not section.tiny:
                    section.check(f"{name}: how far the held-out mean is below {WANTED}", WANTED - after, 0.0)


if __name__ == "__main__":
    main()
