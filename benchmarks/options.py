"""The cost of one setting compared with the defaults: time and memory of a step, and how far its statistics move.

    python benchmarks/options.py
    python benchmarks/options.py --quick    # only to see that it works

`bf16` is `mixed_precision: bf16`: it is faster than float32 on processors that have bfloat16 products.
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

from cases import Case, quick
from command_line import options, parse
from peers import run
from report import save, show

CASE = Case("options", layers=6, width=512, samples=16, query=(64, 64), response=(64, 64))
SPREADS = {
    "ppo/returns/mean": lambda stats: stats["ppo/returns/var"] ** 0.5,
    "ppo/val/mean": lambda stats: stats["ppo/val/var"] ** 0.5,
    "ppo/val/vpred": lambda stats: stats["ppo/val/var"] ** 0.5,
    "ppo/policy/policykl": lambda stats: (2 * stats["ppo/policy/approxkl"]) ** 0.5,
    "ppo/policy/advantages_mean": lambda _: 1.0,  # whitened
    "ppo/policy/ratio_error": lambda _: 1.0,
    "objective/kl": lambda _: 1.0,
    "ppo/mean_non_score_reward": lambda _: 1.0,
}
"""Means of numbers of both signs, with the standard deviation of those numbers (1 if they are 0 except for rounding):
the size of the mean itself says nothing."""


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "kl_penalty='full'": {"config": {"kl_penalty": "full"}},
    "mixed_precision='bf16'": {"accelerator": {"mixed_precision": "bf16"}},
    "gradient_checkpointing=True": {"config": {"gradient_checkpointing": True}},
    "forward_tokens=512": {"config": {"forward_tokens": 512}},
}
"""What is timed: the name, and what the job has in addition to the case."""


def moved(ours: dict[str, float], defaults: dict[str, float]) -> tuple[float, str]:
    """The largest change of a statistic of the first step, and the key of that statistic.

    Relative to its value with the defaults; for a mean of numbers of both signs, to their standard deviation if that
    is larger.
    """

    def distance(key: str) -> float:
        spread = SPREADS[key](defaults) if key in SPREADS else 0.0
        return abs(ours[key] - defaults[key]) / max(abs(defaults[key]), spread, 1e-8)

    return max((distance(key), key) for key in defaults if not key.startswith("perf/"))


def main() -> None:
    args = parse(options(__doc__, rounds=2, steps=3))
    case = quick(CASE) if args.quick else CASE
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
    for _ in range(args.rounds):
        for name, setting in SETTINGS.items():
            job = {"library": "trl_step", "case": case.arguments(), "steps": args.steps, "threads": args.threads}
            runs[name].append(run(sys.executable, "worker.py", job | setting))
    found = {
        name: {
            "seconds": statistics.median([s for result in results for s in result["seconds"]]),
            "cpu_seconds": statistics.median([s for result in results for s in result["cpu_seconds"]]),
            "peak_mb": statistics.median([result["peak_mb"] for result in results]),
            "saved_mb": results[0]["saved_mb"],
            **dict(zip(("moved", "moved_most"), moved(results[0]["stats"], runs["defaults"][0]["stats"]), strict=True)),
        }
        for name, results in runs.items()
    }
    base = found["defaults"]
    rows = [
        [name, f"{r['seconds']:.2f}", f"{r['seconds'] / base['seconds']:.2f}",
         f"{r['cpu_seconds'] / base['cpu_seconds']:.2f}", f"{r['peak_mb']:.0f}", f"{r['saved_mb']:.0f}",
         f"{r['moved']:.1%}", r["moved_most"]]
        for name, r in found.items()
    ]  # fmt: skip
    header = ["setting", "s/step", "time", "CPU time", "peak MB", "kept for backward MB", "statistics move by", "most"]
    show("one PPO step, a setting compared with the defaults", header, rows)
    if not args.quick:
        save("options", {"case": case.arguments(), "settings": found}, args.output)


if __name__ == "__main__":
    main()
