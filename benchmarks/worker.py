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
from importlib import metadata

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import psutil
import torch
from cases import Case
from contenders import make

warnings.filterwarnings("ignore")
PROCESS = psutil.Process()


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
        return PROCESS.memory_info().rss / 1e6

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


def batch(case: Case, seed: int):
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int):
        return torch.randint(8, case.vocabulary, (n,), generator=generator)

    queries, responses = zip(*[(ids(q), ids(r)) for q, r in case.lengths()])  # noqa: B905
    queries = [queries[i - i % case.group] for i in range(case.samples)]
    scores = [torch.tensor(float(x)) for x in torch.randn(case.samples, generator=generator)]
    return queries, list(responses), scores


def movement(before: dict, model) -> dict[str, list[float]]:
    """Eight fixed random projections of how far each weight moved, under a name that all libraries share."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith("c_attn.bias"):  # the keys' bias has no gradient: noise
            moved = (parameter.detach() - before[name]).double().flatten()
            generator = torch.Generator().manual_seed(len(moved))
            directions = torch.randn(8, len(moved), generator=generator, dtype=torch.double)
            found[shared_name(name)] = (directions @ moved).tolist()
    return found


def shared_name(name: str) -> str:
    """A weight's name without the prefixes of wrappers and the name of the adapter."""
    name = name.replace(".actor.", ".default.")
    return name[name.index("transformer.") :]


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


def version(name: str) -> str:
    return getattr(importlib.import_module(name), "__version__", None) or metadata.version(name)


def main() -> None:
    job = json.loads(sys.argv[1])
    case = Case(**{k: tuple(v) if isinstance(v, list) else v for k, v in job["case"].items()})
    torch.set_num_threads(job.get("threads", 2))
    library = importlib.import_module(job["library"])
    trainer = make(library, case, job.get("config", {}), job.get("accelerator", {}))
    if job.get("compare"):
        before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        trainer.step(*batch(case, 0))
        print("RESULT " + json.dumps({"moved": movement(before, trainer.model)}))
        return
    np.random.seed(0)
    first = trainer.step(*batch(case, 0))  # the warm-up, and the step that must agree
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
            wall, cpu = trainer.timed(*inputs)
            result["seconds"].append(wall)
            result["cpu_seconds"].append(cpu)
    result["peak_mb"] = memory.growth
    result["rate"].append(matrix_rate(case))
    result["versions"] = {name: version(name) for name in (job["library"], "torch", "transformers")}
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
