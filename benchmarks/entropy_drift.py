"""Whether rounding the head's gradient chunk by chunk lets the entropy drift: three arithmetics over 200 updates.

    python benchmarks/entropy_drift.py
    python benchmarks/entropy_drift.py --quick    # only to see that it works

The policy is an output embedding over fixed hidden states; it draws its own tokens, and their advantages are random, so
that the entropy has no reason to move but the noise, which is the same for all. Contenders: float32; bf16 with float32
sums, as CUDA devices add them (`trl_step/head/products.py`); and bf16 whose every chunk of rows is rounded before it is
added.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from command_line import options, parse
from report import save, show

from trl_step.head import policy_gradient, products, tiles, weight_gradient
from trl_step.head.tiles import OutputHead

ROWS, WIDTH, VOCABULARY, CHUNK = 64, 16, 128, 4
LEARNING_RATE = 3e-3
CONTENDERS = {
    "float32": (False, False),
    "bf16, sums in float32": (True, True),
    "bf16, chunks rounded": (True, False),
}
"""Name -> whether products are bfloat16, and whether chunks are added in float32."""


@contextmanager
def sums(in_float32: bool) -> Iterator[None]:
    """Inside, products of bfloat16 numbers keep their float32 sums, or are rounded as a CPU rounds them."""

    def exact(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.mm(left.float(), right.float())

    def add_exact(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, first: bool) -> None:
        total.addmm_(left.float(), right.to(left.dtype).float(), beta=0 if first else 1)

    chosen = (exact, add_exact) if in_float32 else (products.product, products.add_product)
    policy_gradient.product, weight_gradient.add_product = chosen
    try:
        yield
    finally:
        policy_gradient.product, weight_gradient.add_product = products.product, products.add_product


def entropies(in_bf16: bool, in_float32: bool, updates: int, seed: int) -> list[float]:
    """Mean entropy (nats) of the policy before each update, in float64."""
    stream = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, WIDTH, generator=stream)
    weight = torch.nn.Parameter(0.4 * torch.randn(VOCABULARY, WIDTH, generator=stream))
    optimizer = torch.optim.Adam([weight], lr=LEARNING_RATE)
    found = []
    with sums(in_float32):
        for _ in range(updates):
            log_p = torch.log_softmax(hidden.double() @ weight.detach().double().T, dim=1)
            found.append(float(-(log_p.exp() * log_p).sum(1).mean()))
            # the same random numbers for every contender: the token at which the distribution reaches them
            drawn = torch.rand(ROWS, 1, generator=stream, dtype=torch.float64)
            labels = torch.searchsorted(log_p.exp().cumsum(1), drawn).clamp_(max=VOCABULARY - 1).squeeze(1)
            slopes = -torch.randn(ROWS, generator=stream) / ROWS
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                rows = policy_gradient.policy_gradient_rows(
                    hidden, labels, OutputHead(weight), lambda rows, _, slopes=slopes: slopes[rows]
                )
            rows.anchor.backward()
            optimizer.step()
            optimizer.zero_grad()
    return found


def main() -> None:
    args = parse(options(__doc__, rounds=5, steps=200))
    torch.set_num_threads(args.threads)
    tiles.CHUNK_ELEMENTS, tiles.MIN_CHUNK_ROWS = CHUNK * VOCABULARY, 1
    curves = {
        name: [entropies(*arithmetic, args.steps, seed) for seed in range(args.rounds)]
        for name, arithmetic in CONTENDERS.items()
    }
    table = []
    for name, found in curves.items():
        apart = [curve[-1] - base[-1] for curve, base in zip(found, curves["float32"], strict=True)]
        moved = statistics.mean(curve[-1] - curve[0] for curve in found)
        table.append([name, f"{statistics.mean(c[-1] for c in found):.4f}", f"{moved:+.4f}",
                      f"{statistics.mean(apart):+.5f}", " ".join(f"{each:+.5f}" for each in apart)])  # fmt: skip
    show(
        f"entropy after {args.steps} updates, {ROWS // CHUNK} chunks each",
        ["arithmetic", "nats", "since the start", "less float32's", "by seed"],
        table,
    )
    if not args.quick:
        save("entropy_drift", {"updates": args.steps, "chunks": ROWS // CHUNK, "curves": curves}, args.output)


if __name__ == "__main__":
    main()
