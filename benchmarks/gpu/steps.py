"""Section of gpu_check.py: seconds and memory of a step in bf16, beside TRL 0.11.4 on the same card."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from typing import Any

import torch
from cases import Case
from contenders import tokenizer
from records import Section
from shapes import adapters, language_model
from wheels import synchronize, trl_0_11
from worker import batch

import trl_step
from trl_step.trainer.updates.updater import Updater

COMPARED = ("GPT-2 124M", "Llama 0.5B", "Llama 1.5B")
GOAL = 0.35
"""Of the other's seconds, and of its growth of the peak."""
LARGE_GB = 24.0


def case_of(section: Section, samples: int, query: int, response: int, mini_batch: int) -> Case:
    if section.tiny:
        samples, query, response, mini_batch = 4, 4, 4, 2
    return Case("gpu", 0, 0, samples, (query, query), (response, response), mini_batch, vocabulary=499)


def measured(
    section: Section, library: Any, model: Any, case: Case, steps: int, prepare: Any = None, **settings: Any
) -> tuple[dict[str, float], Any]:
    """Seconds of a step, the peak and how far it lies above the start of a step, in GB; and the trainer."""
    accelerator = {"cpu": not section.on_gpu, "mixed_precision": "bf16"}
    config = library.PPOConfig(
        batch_size=case.samples, mini_batch_size=case.mini_batch, learning_rate=1e-6, accelerator_kwargs=accelerator,
        **settings,
    )  # fmt: skip
    trainer = library.PPOTrainer(config, model, None, tokenizer())
    if prepare is not None:
        prepare(trainer)
    trainer.step(*batch(case, 0))
    synchronize(section.device)
    start_gb = peak_gb = seconds = 0.0
    if section.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        start_gb = torch.cuda.memory_allocated() / 1e9
    taken = []
    for seed in range(1, steps + 1):
        inputs = batch(case, seed)
        begin = time.perf_counter()
        trainer.step(*inputs)
        synchronize(section.device)
        taken.append(time.perf_counter() - begin)
    seconds = min(taken)
    if section.on_gpu:
        peak_gb = torch.cuda.max_memory_allocated() / 1e9
    return {"seconds": seconds, "peak": peak_gb, "growth": peak_gb - start_gb}, trainer


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compare(section: Section, other: Any, shape: str) -> None:
    """64 samples of 256 + 256 tokens in mini-batches of 8, four epochs."""
    case = case_of(section, 64, 256, 256, 8)
    found = {}
    for name, library in (("trl_step", trl_step), ("TRL 0.11.4", other)):
        if library is None:
            continue
        with section.attempt(f"{shape}, {name}", "figure"):
            model = library.AutoModelForCausalLMWithValueHead.from_pretrained(language_model(section, shape))
            found[name], trainer = measured(section, library, model, case, steps=2)
            section.figure(f"{shape}, {name}: step", found[name]["seconds"], "s")
            if section.on_gpu:
                section.figure(f"{shape}, {name}: peak", found[name]["peak"], "GB")
                section.figure(f"{shape}, {name}: growth of the peak in a step", found[name]["growth"], "GB")
            if library is trl_step:
                section.figure(f"{shape}, trl_step: step over its products", trainer.step_cost().ratio_to_limit)
        model = trainer = None
        release()
    if len(found) == 2:
        ours, theirs = found["trl_step"], found["TRL 0.11.4"]
        for what, unit in (("seconds", "step"), ("growth", "growth of the peak")):
            if theirs[what] > 0:
                section.goal(f"{shape}: {unit} over that of TRL 0.11.4", ours[what] / theirs[what], GOAL)


def ragged(section: Section) -> None:
    """0.5B, 64 samples of 16 to 256 + 16 to 256 tokens: without padding, with it, and with verdicts on the host."""
    size, shape = (8 if section.tiny else 256), COMPARED[1]
    lengths = (max(size // 16, 1), size)
    case = replace(case_of(section, 64, size, size, 8), query=lengths, response=lengths)
    for name, prepare, settings in (
        ("without padding", None, {"padding_free": True}),
        ("padded", None, {"padding_free": False}),
        ("verdicts on the host", host_verdicts, {"padding_free": True}),
    ):
        with section.attempt(f"{shape}, ragged, {name}", "figure"):
            model = trl_step.AutoModelForCausalLMWithValueHead.from_pretrained(language_model(section, shape))
            found, _ = measured(section, trl_step, model, case, steps=1, prepare=prepare, **settings)
            section.figure(f"{shape}, ragged, {name}: step", found["seconds"], "s")
        model = None
        release()


def host_verdicts(trainer: Any) -> None:
    """Let the host wait for the verdict on every mini-batch: once for each, in place of once for the step."""
    own = (trainer._processes, trainer.model, trainer.optimizer, trainer.model_params, trainer.config)
    trainer._updater = Updater(*own)


def large(section: Section) -> None:
    """8B in bf16 with adapters of rank 16: 16 samples of 512 + 512 tokens in one mini-batch, with checkpointing."""
    with section.attempt("Llama 8B with adapters"):
        model = trl_step.AutoModelForCausalLMWithValueHead.from_pretrained(
            language_model(section, "Llama 8B", torch.bfloat16), peft_config=adapters()
        )
        case = case_of(section, 16, 512, 512, 16)
        found, trainer = measured(section, trl_step, model, case, steps=1, gradient_checkpointing=True)
        section.figure("Llama 8B with adapters: step", found["seconds"], "s")
        section.figure("Llama 8B with adapters: step over its products", trainer.step_cost().ratio_to_limit)
        if section.on_gpu:
            section.goal("Llama 8B with adapters: peak", found["peak"], LARGE_GB, "GB")


def main() -> None:
    section = Section()
    if not section.on_gpu:
        section.absent("memory", "it is measured on a GPU")
    other = trl_0_11(section)
    for shape in COMPARED[:1] if section.tiny else COMPARED:
        compare(section, other, shape)
    large(section)
    ragged(section)


if __name__ == "__main__":
    main()
