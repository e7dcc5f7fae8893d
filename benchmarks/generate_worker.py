"""Times `trainer.generate` on ragged prompts in a fresh process and prints one line of JSON; see generate.py."""

from __future__ import annotations

import importlib
import json
import sys
import time
import warnings

import torch
from cases import Case
from contenders import make_model, tokenizer

warnings.filterwarnings("ignore")


def main() -> None:
    job = json.loads(sys.argv[1])
    case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in job["case"].items()})
    torch.set_num_threads(job.get("threads", 2))
    library = importlib.import_module(job["library"])
    config = library.PPOConfig(batch_size=case.samples, mini_batch_size=case.samples, accelerator_kwargs={"cpu": True})
    trainer = library.PPOTrainer(config, make_model(library, case), None, tokenizer())
    generator = torch.Generator().manual_seed(0)
    queries = [torch.randint(8, case.vocabulary, (q,), generator=generator) for q, _ in case.lengths()]
    # every response has its full length: no token ends it, so that all peers sample the same number of tokens
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": case.response[1], "pad_token_id": 0}
    options |= {"min_new_tokens": case.response[1], "return_prompt": False}
    trainer.generate(queries[:4], **options)
    seconds, lengths = [], []
    for _ in range(job["steps"]):
        start = time.perf_counter()
        responses = trainer.generate(queries, **options)
        seconds.append(time.perf_counter() - start)
        lengths.append(sum(len(response) for response in responses))
    print("RESULT " + json.dumps({"seconds": seconds, "new_tokens": lengths}))


if __name__ == "__main__":
    main()
