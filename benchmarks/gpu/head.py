"""Section of gpu_check.py: log-probs, entropy and gradients of the output embedding in bf16, beside other libraries.

16,384 rows of width 4,096, a vocabulary of 128,256. Timed are forward and backward of the mean of ratio times
advantage; the limit is three matrix products at the rate that this process measures. Every contender's gradients are
compared with trl_step's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from records import Section, distance
from wheels import from_wheel, synchronize

from trl_step.head import compiled
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead

GOAL = 1.6
"""Of the time of three products."""
GOAL_GB = 1.5
"""Above the gradients that are handed out."""
SAME = 2e-2
"""For gradients in bf16, relative to their norm."""
TRL_CHUNK = 32_768
"""Columns of a tile, as TRL's trainers set it."""


class Batch(NamedTuple):
    """Leaves and constants of the loss."""

    hidden: torch.Tensor
    weight: torch.Tensor
    labels: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor

    def loss(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Its slope at a log-prob is -advantage * ratio / rows."""
        return -(self.advantages * torch.exp(logprobs - self.old)).mean()


def draw(section: Section) -> Batch:
    rows, width, vocabulary = (64, 32, 999) if section.tiny else (16_384, 4096, 128_256)
    device, stream = section.device, torch.Generator(section.device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, device=device, dtype=torch.bfloat16)

    hidden, weight = normal(rows, width), normal(vocabulary, width).mul_(width**-0.5)
    labels = torch.randint(vocabulary, (rows,), generator=stream, device=device)
    old = -torch.log(torch.tensor(float(vocabulary), device=device)).expand(rows)
    return Batch(hidden.requires_grad_(), weight.requires_grad_(), labels, old, normal(rows).float())


def ours(batch: Batch) -> None:
    def slope(rows: slice, logprobs: torch.Tensor) -> torch.Tensor:
        return -batch.advantages[rows] * torch.exp(logprobs - batch.old[rows]) / len(batch.labels)

    policy_gradient_rows(batch.hidden, batch.labels, OutputHead(batch.weight), slope).anchor.backward()


def autograd(batch: Batch) -> None:
    logits = (batch.hidden @ batch.weight.T).float()
    batch.loss(-F.cross_entropy(logits, batch.labels, reduction="none")).backward()


def trl_chunked() -> Callable[[Batch], None]:
    from trl.kernels import ChunkedLogProbFunction

    def run(batch: Batch) -> None:
        logprobs = ChunkedLogProbFunction.apply(
            batch.hidden, batch.weight, None, batch.labels, 1.0, TRL_CHUNK, None, 1.0, ("entropy",)
        )[0]
        batch.loss(logprobs).backward()

    return run


def liger(section: Section) -> Callable[[Batch], None]:
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=0.0, loss_type="bnpo", use_ref_model=False, epsilon_low=10.0, epsilon_high=10.0, compiled=section.on_gpu
    )

    def run(batch: Batch) -> None:
        samples = 16
        rows = [each.view(samples, -1) for each in (batch.labels, batch.old, batch.advantages)]
        # one advantage for each sample there
        loss(
            batch.hidden.view(samples, -1, batch.hidden.shape[1]), batch.weight, rows[0],
            torch.ones_like(rows[0]), rows[2][:, 0].contiguous(), old_per_token_logps=rows[1].contiguous(),
        )[0].backward()  # fmt: skip

    return run


def gradients(batch: Batch) -> dict[str, torch.Tensor]:
    """Those of the last backward pass, which are taken away."""
    found = {}
    for name in ("hidden", "weight"):
        leaf = getattr(batch, name)
        found[name], leaf.grad = leaf.grad, None
    return found


def measure(section: Section, name: str, run: Callable[[Batch], None], batch: Batch, repeats: int = 3) -> float:
    """Seconds of one call, at least; the memory is reported."""
    run(batch)
    synchronize(section.device)
    taken, growth = [], 0.0
    for _ in range(repeats):
        gradients(batch)
        if section.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if section.on_gpu else 0
        begin = time.perf_counter()
        run(batch)
        synchronize(section.device)
        taken.append(time.perf_counter() - begin)
        growth = (torch.cuda.max_memory_allocated() - before) / 1e9 if section.on_gpu else 0.0
    section.figure(f"{name}: forward and backward", 1e3 * min(taken), "ms")
    if section.on_gpu:
        handed_out = sum(leaf.numel() * leaf.element_size() for leaf in (batch.hidden, batch.weight)) / 1e9
        section.figure(f"{name}: growth of the peak", growth, "GB", f"{handed_out:.2f} GB of it are gradients")
        if run is ours:
            section.goal(f"{name}: growth above the gradients", growth - handed_out, GOAL_GB, "GB")
    return min(taken)


def products(section: Section, batch: Batch) -> float:
    """Seconds of three products at the best measured rate."""
    rate = 0.0
    with torch.no_grad():
        for rows in {min(4096, len(batch.hidden)), len(batch.hidden)}:
            for _ in range(4):
                begin = time.perf_counter()
                torch.mm(batch.hidden[:rows], batch.weight.T)
                synchronize(section.device)
                rate = max(rate, rows / (time.perf_counter() - begin))
    operations = 2 * batch.weight.numel()
    section.figure("rate of a product", rate * operations / 1e12, "Tflop/s")
    return 3 * len(batch.hidden) / rate


def check_compiled(section: Section, batch: Batch, expected: dict[str, torch.Tensor]) -> None:
    """Whether tiles were compiled, and what they take if they are not."""
    if not section.on_gpu:
        section.absent("tiles in one kernel", "on a CPU the cache does the same")
        return
    section.goal("tiles that could not be compiled", float(section.device not in compiled.DEVICES), 0)
    with section.attempt("trl_step without a compiler", "figure"):
        compiled.DEVICES.clear()
        measure(section, "trl_step without a compiler", ours, batch)
        section.check("gradients without a compiler", distance(gradients(batch), expected), SAME)


def main() -> None:
    section = Section()
    batch = draw(section)
    limit = products(section, batch)
    section.figure("three products", 1e3 * limit, "ms")
    with section.attempt("trl_step"):
        seconds = measure(section, "trl_step", ours, batch)
        expected = gradients(batch)
        section.goal("trl_step: time over three products", seconds / limit, GOAL)
    check_compiled(section, batch, expected)
    if not section.on_gpu:
        section.absent("memory", "it is measured on a GPU")

    def contend(name: str, run: Callable[[Batch], None], same_loss: bool = True) -> None:
        measure(section, name, run, batch)
        found = gradients(batch)
        if same_loss:
            section.check(f"{name}: gradients against trl_step's", distance(found, expected), SAME)

    if from_wheel(section, "trl-1.16.0"):
        with section.attempt("TRL 1.16", "figure"):
            contend("TRL 1.16's chunked log-probs", trl_chunked())
    with section.attempt("autograd", "figure"):
        contend("plain autograd", autograd)
    if from_wheel(section, "liger_kernel"):
        with section.attempt("Liger", "figure"):
            contend("Liger's fused loss", liger(section), same_loss=False)


if __name__ == "__main__":
    main()
