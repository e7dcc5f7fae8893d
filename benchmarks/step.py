"""Time and memory of one PPO step compared with older releases, and how far it is from the machine's own limit.

    python benchmarks/step.py            # about half an hour on two cores
    python benchmarks/step.py --quick    # seconds: only to see that it works
    python benchmarks/step.py --cases small ragged --peers trl_step "trl 0.7.11" --rounds 5

Every run is a fresh process: one warm-up, then `--steps` steps. The contenders alternate, `--rounds` times. No time
is reported before the warm-up's statistics and weights agree with release 0.7.11. A run in which the machine's matrix
rate changed by more than 15 % between start and end is repeated, at most `--retries` times.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from cases import CASES, Case, quick
from command_line import options, parse
from peers import PEERS, python_of, run
from report import bars, save, show

REFERENCE = "trl 0.7.11"
GOALS = {  # time over the reference's, time over the limit, peak over the reference's
    "small": (0.45, 2.2, 0.35),
    "fixed": (0.45, 1.6, 0.45),
    "ragged": (0.25, 2.2, 0.3),
    "long-prompt": (0.35, 2.2, 0.3),
    "shared": (0.3, 1.8, 0.35),
    "lora": (0.45, 1.8, 0.45),
}


def differences(ours: dict[str, Any], theirs: dict[str, Any], rtol: float = 2e-3, atol: float = 2e-4) -> list[str]:
    """Statistics and weights (sum and norm of each) that do not agree after one step."""
    found = []
    for kind in ("stats", "weights"):
        for name, value in theirs[kind].items():
            mine = ours[kind].get(name)
            pairs = [(mine, value)] if kind == "stats" else zip(mine or (), value, strict=True)
            if mine is None or any(abs(a - b) > atol + rtol * abs(b) for a, b in pairs):
                found.append(f"{kind} {name}: {mine} against {value}")
    return found


def measure(case: Case, peers: list[str], pythons: dict[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """All runs of one case, with alternating contenders."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for _ in range(args.rounds):
        for name in peers:
            job = {
                "library": PEERS[name].library,
                "case": case.arguments(),
                "steps": args.steps,
                "threads": args.threads,
            }
            for attempt in range(args.retries + 1):
                result = run(pythons[name], "worker.py", job)
                before, after = result["rate"]
                if abs(before - after) <= 0.15 * max(before, after) or attempt == args.retries:
                    break
            runs[name].append(result)
            if REFERENCE in peers and runs[REFERENCE]:
                wrong = differences(result, runs[REFERENCE][0])
                if wrong and name != REFERENCE:
                    raise SystemExit(f"{case.name}: {name} does not agree with {REFERENCE}:\n" + "\n".join(wrong[:10]))
    return {name: summary(case, results) for name, results in runs.items()}


def summary(case: Case, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and minimum over all steps of all runs."""
    seconds = [s for result in results for s in result["seconds"]]
    rate = max(rate for result in results for rate in result["rate"])
    limit = case.flops() / rate
    return {
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "cpu_seconds": statistics.median([s for result in results for s in result["cpu_seconds"]]),
        "peak_mb": statistics.median([result["peak_mb"] for result in results]),
        "gflops": rate / 1e9,
        "limit_seconds": limit,
        "ratio_to_limit": ratio(case, results),
        "versions": results[0]["versions"],
    }


def ratio(case: Case, results: list[dict[str, Any]]) -> float:
    """Median time of a step divided by that of its products alone, at the best rate of the same process."""
    return statistics.median([s * max(result["rate"]) / case.flops() for result in results for s in result["seconds"]])


def table(found: dict[str, dict[str, Any]], peers: list[str]) -> list[list[str]]:
    """One row per case and peer."""
    rows = []
    for case, by_peer in found.items():
        base = by_peer.get(REFERENCE)
        for peer in peers:
            r = by_peer[peer]
            relative = [
                f"{r[key] / base[key]:.2f}" if base and base[key] > 0 else ""
                for key in ("seconds", "cpu_seconds", "peak_mb")
            ]
            rows.append(
                [f"{case}: {peer}", f"{r['seconds']:.2f}", f"{r['seconds_min']:.2f}", relative[0], relative[1],
                 f"{r['ratio_to_limit']:.2f}", f"{r['peak_mb']:.0f}", relative[2]]
            )  # fmt: skip
    return rows


def main() -> None:
    parser = options(__doc__, list(PEERS), rounds=3, steps=5, retries=2)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = parse(parser)
    pythons = {name: python_of(PEERS[name], dict(args.python)) for name in args.peers}
    found = {}
    for name in args.cases:
        found[name] = measure(quick(CASES[name]) if args.quick else CASES[name], args.peers, pythons, args)
        header = ["case: library", "s/step", "min", "time /0.7.11", "CPU /0.7.11", "/limit", "peak MB",
                  "peak /0.7.11"]  # fmt: skip
        show("one PPO step, float32", header, table(found, args.peers))
        if not args.quick:
            save("step", {"goals": GOALS, "cases": found}, args.output)
    if not args.quick:
        series = {peer: [found[case][peer]["seconds"] for case in found] for peer in args.peers}
        bars(args.output / "step.png", "seconds per PPO step", list(found), series, "s")


if __name__ == "__main__":
    main()
