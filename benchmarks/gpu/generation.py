"""Section of gpu_check.py: new tokens per second, 8 answers to each of 32 prompts, beside TRL 0.11.4 and transformers.

A 0.5B Llama shape in bf16, prompts of 32 to 256 tokens, answers of exactly 128 new ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from contenders import tokenizer
from records import Section
from shapes import language_model
from wheels import synchronize, trl_0_11

import trl_step

SHAPE = "Llama 0.5B"
ANSWERS = 8


def prompts(section: Section) -> list[torch.Tensor]:
    """Each as often as it is answered."""
    count, low, high = (2, 3, 6) if section.tiny else (32, 32, 256)
    stream = torch.Generator().manual_seed(0)
    lengths = torch.linspace(low, high, count).long().tolist()
    drawn = [torch.randint(8, 499, (length,), generator=stream) for length in lengths]
    return [prompt.to(section.device) for prompt in drawn for _ in range(ANSWERS)]


def measure(section: Section, name: str, sample: Callable[[], int]) -> None:
    """Report the tokens per second of the second of two calls; `sample` returns the number of new tokens."""
    with section.attempt(name, "figure"):
        sample()
        synchronize(section.device)
        begin = time.perf_counter()
        tokens = sample()
        synchronize(section.device)
        section.figure(name, tokens / (time.perf_counter() - begin), "tokens/s", f"{tokens} tokens")


def by_trainer(section: Section, library: Any, queries: list[torch.Tensor], new: int) -> Callable[[], int]:
    """`PPOTrainer.generate` with its default batching."""
    config = library.PPOConfig(
        batch_size=len(queries), mini_batch_size=len(queries), accelerator_kwargs={"cpu": not section.on_gpu}
    )
    model = library.AutoModelForCausalLMWithValueHead.from_pretrained(language_model(section, SHAPE, torch.bfloat16))
    trainer = library.PPOTrainer(config, model, None, tokenizer())
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "pad_token_id": 0, "return_prompt": False}
    options |= {"max_new_tokens": new, "min_new_tokens": new}

    def sample() -> int:
        return sum(len(response) for response in trainer.generate(queries, **options))

    return sample


def by_transformers(section: Section, queries: list[torch.Tensor], new: int) -> Callable[[], int]:
    """Continuous batching of transformers."""
    from transformers import GenerationConfig

    model = language_model(section, SHAPE, torch.bfloat16).eval()
    # no token ends an answer
    options = GenerationConfig(do_sample=True, top_k=0, top_p=1.0, max_new_tokens=new, eos_token_id=-1, pad_token_id=0)
    inputs = [query.tolist() for query in queries]

    def sample() -> int:
        found = model.generate_batch(inputs, generation_config=options)
        return sum(len(each.generated_tokens) for each in found.values())

    return sample


def main() -> None:
    section = Section()
    queries, new = prompts(section), 4 if section.tiny else 128
    with section.attempt("trl_step", "figure"):
        measure(section, "trl_step", by_trainer(section, trl_step, queries, new))
    if section.on_gpu:
        with section.attempt("transformers' generate_batch", "figure"):
            measure(section, "transformers' generate_batch", by_transformers(section, queries, new))
    else:
        section.absent("transformers' generate_batch", "it is for GPUs")
    other = trl_0_11(section)
    if other is not None:
        with section.attempt("TRL 0.11.4", "figure"):
            measure(section, "TRL 0.11.4", by_trainer(section, other, queries, new))


if __name__ == "__main__":
    main()
