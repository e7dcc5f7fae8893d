"""Runs one case in a fresh process, with whichever library its Python has, and prints one line of JSON.

    python benchmarks/worker.py '{"library": "trl_step", "case": {...}, "steps": 5}'

Also runs with the packages of release 0.7.11, so it only uses what both have.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
import warnings

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import torch
from cases import Case

warnings.filterwarnings("ignore")
PAGE = os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """Growth of the resident set, in MB, over its value at the start; sampled every few milliseconds."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self.resident()
        self.stop = False
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop = True
        self.thread.join()

    def watch(self) -> None:
        while not self.stop:
            self.peak = max(self.peak, self.resident())
            time.sleep(0.003)

    @staticmethod
    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * PAGE / 1e6

    @property
    def growth(self) -> float:
        return self.peak - self.start


def matrix_rate(case: Case) -> float:
    """Best flop/s of float32 products at the model's own shapes."""
    rows = case.mini_batch * (case.query[1] + case.response[1])
    best = 0.0
    for m, k, n in (
        (rows, case.width, 4 * case.width),
        (case.mini_batch * case.response[1], case.width, case.vocabulary),
    ):
        left, right = torch.randn(m, k), torch.randn(n, k)
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(left, right.t())
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best


def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(8)}, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", unk_token="w3")


def make_model(library, case: Case):
    """The same weights for every peer: drawn by name, not in the order in which a release builds its modules."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=case.vocabulary, n_embd=case.width, n_layer=case.layers, n_head=max(case.width // 64, 1),
        n_positions=512, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    plain, options = GPT2LMHeadModel(config), {}
    fill(plain)
    if case.lora:
        from peft import LoraConfig

        options["peft_config"] = LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.0, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
        )
    model = library.AutoModelForCausalLMWithValueHead.from_pretrained(plain, **options)
    model.v_head.dropout = torch.nn.Identity()
    fill(model.v_head)
    if case.lora:
        fill([(n, p) for n, p in model.pretrained_model.named_parameters() if "lora_" in n])
    return model


def fill(module) -> None:
    named = module if isinstance(module, list) else sorted(module.named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in named:
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)


def batch(case: Case, seed: int):
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int):
        return torch.randint(8, case.vocabulary, (n,), generator=generator)

    queries, responses = zip(*[(ids(q), ids(r)) for q, r in case.lengths()])  # noqa: B905
    scores = [torch.tensor(float(x)) for x in torch.randn(case.samples, generator=generator)]
    return list(queries), list(responses), scores


def saved_for_backward(trainer, inputs) -> float:
    """Maximum megabytes that one mini-batch keeps for its backward pass, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in trainer.model.parameters()}
    kept: dict = {}
    most = 0.0

    def pack(tensor):
        nonlocal most
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
            most = max(most, sum(kept.values()) / 1e6)
        return tensor

    def unpack(tensor):
        kept.clear()  # the backward pass has begun
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        trainer.step(*inputs)
    return most


def main() -> None:
    job = json.loads(sys.argv[1])
    case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in job["case"].items()})
    torch.set_num_threads(job.get("threads", 2))
    library = importlib.import_module(job["library"])
    options = {"batch_size": case.samples, "mini_batch_size": case.mini_batch, "learning_rate": 1e-4}
    accelerator = {"cpu": True, **job.get("accelerator", {})}
    config = library.PPOConfig(accelerator_kwargs=accelerator, **{**options, **job.get("config", {})})
    model = make_model(library, case)
    trainer = library.PPOTrainer(config, model, None, tokenizer(), num_shared_layers=case.shared_layers or None)
    np.random.seed(0)
    first = trainer.step(*batch(case, 0))  # the warm-up, and the step that must agree with the other peers
    trained = [(n, p) for n, p in trainer.model.named_parameters() if p.requires_grad]
    result = {
        "stats": {k: float(v) for k, v in first.items() if np.ndim(v) == 0 and not k.startswith("time/")},
        "weights": {
            n: [float(p.detach().double().sum()), float(p.detach().double().norm())] for n, p in sorted(trained)
        },
        "rate": [matrix_rate(case)],
        "seconds": [],
        "cpu_seconds": [],
    }
    if job["library"] == "trl_step":
        result["saved_mb"] = saved_for_backward(trainer, batch(case, 0))
    with PeakMemory() as memory:
        for seed in range(1, job["steps"] + 1):
            inputs = batch(case, seed)
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step(*inputs)
            result["seconds"].append(time.perf_counter() - wall)
            result["cpu_seconds"].append(time.process_time() - cpu)
    result["peak_mb"] = memory.growth
    result["rate"].append(matrix_rate(case))
    result["versions"] = {
        name: importlib.import_module(name).__version__ for name in (job["library"], "torch", "transformers")
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
