"""Times one contender of generate.py in a fresh process and prints one line of JSON."""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
import warnings
from collections.abc import Callable

import torch
from cases import Case
from contenders import make_model, tokenizer

warnings.filterwarnings("ignore")
END = 0
"""id of the end token of the benchmarks' models and tokenizer"""


def set_end(model: torch.nn.Module, probability: float) -> None:
    """Make the end token as likely as that after every token, whatever was written; 0: it never comes.

    The last normalisation gets a bias in one direction, which the end token's embedding alone sees.
    """
    trunk = model.pretrained_model.transformer
    embedding, bias = trunk.wte.weight, trunk.ln_f.bias
    offset = math.log(probability * len(embedding)) if probability else -30.0
    direction = torch.nn.functional.normalize(torch.ones_like(bias), dim=0)
    with torch.no_grad():
        embedding -= torch.outer(embedding @ direction, direction)
        embedding[END] = 0.1 * direction
        bias.copy_(10 * offset * direction)


def sampler(name: str, contender: str, case: Case, limit: int) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    """What is timed: answers without their queries."""
    library = importlib.import_module(name)
    config = library.PPOConfig(batch_size=case.samples, mini_batch_size=case.samples, accelerator_kwargs={"cpu": True})
    model = make_model(library, case)
    set_end(model, 1 / case.response[0] if case.response[0] < limit else 0.0)
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": limit, "pad_token_id": END}
    if contender == "generate_batch":
        return continuous(model.pretrained_model, options)
    if contender == "transformers":
        return padded(model.pretrained_model.eval(), options)
    words = tokenizer()
    words.eos_token = words.pad_token  # END is both
    trainer = library.PPOTrainer(config, model, None, words)
    if contender.endswith("log-probs"):
        options["return_logprobs"] = True
        return lambda queries: trainer.generate(queries, return_prompt=False, **options)[0]
    return lambda queries: trainer.generate(queries, return_prompt=False, **options)


def padded(model: torch.nn.Module, options: dict) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    def sample(queries: list[torch.Tensor]) -> list[torch.Tensor]:
        width = max(map(len, queries))
        ids = torch.stack([torch.cat((query.new_full((width - len(query),), END), query)) for query in queries])
        mask = torch.stack([(torch.arange(width) >= width - len(query)).long() for query in queries])
        new = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
        return [row[: int((row == END).int().argmax()) + 1] if bool((row == END).any()) else row for row in new]

    return sample


def continuous(model: torch.nn.Module, options: dict) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
    from transformers import GenerationConfig

    settings = GenerationConfig(**options, eos_token_id=END)

    def sample(queries: list[torch.Tensor]) -> list[torch.Tensor]:
        found = model.generate_batch([query.tolist() for query in queries], generation_config=settings)
        return [torch.tensor(answer.generated_tokens) for answer in found.values()]

    return sample


def memory_rate() -> float:
    """Bytes per second of the best of some reads of 400 MB."""
    block = torch.ones(100_000_000)
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        best = min(best, time.perf_counter() - start)
    return block.nbytes / best


def bytes_read(case: Case, lengths: list[tuple[int, int]]) -> float:
    """What the new tokens need at least from memory: once the weights for each of them that all rows write together,
    and for every row the keys and values of its own tokens so far; float32."""
    weights = 12 * case.layers * case.width**2 + case.vocabulary * case.width
    passes = max(new for _, new in lengths)
    cache = 2 * case.layers * case.width * sum(new * query + new * (new - 1) / 2 for query, new in lengths)
    return 4 * (passes * weights + cache)


def main() -> None:
    job = json.loads(sys.argv[1])
    case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in job["case"].items()})
    torch.set_num_threads(job.get("threads", 2))
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randint(8, case.vocabulary, (q,), generator=generator) for q, _ in case.lengths()]
    queries = [queries[i - i % case.group] for i in range(len(queries))]
    sample = sampler(job["library"], job["contender"], case, case.response[1])
    sample(queries[: 2 * case.group])
    rate = memory_rate()
    seconds, new_tokens, limits = [], [], []
    for step in range(job["steps"]):
        torch.manual_seed(step)
        start = time.perf_counter()
        answers = sample(queries)
        seconds.append(time.perf_counter() - start)
        lengths = [(len(query), len(answer)) for query, answer in zip(queries, answers, strict=True)]
        new_tokens.append(sum(new for _, new in lengths))
        limits.append(1000 * bytes_read(case, lengths) / rate / new_tokens[-1])
    print("RESULT " + json.dumps({"seconds": seconds, "new_tokens": new_tokens, "limit": min(limits)}))


if __name__ == "__main__":
    main()
