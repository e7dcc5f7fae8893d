"""Episodes per second of `TextEnvironment.run`, beside release 0.7.11: 32 episodes of 4 turns, a tool that takes 50 ms.

python benchmarks/environment.py
python benchmarks/environment.py --quick    # only to see that it works
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from peers import PEERS, python_of, run
from report import RESULTS, save, show

CASE: dict[str, Any] = {
    "episodes": 32,
    "turns": 4,
    "tool_seconds": 0.05,
    "query_words": [2, 24],
    "layers": 2,
    "width": 128,
}
QUICK = {"episodes": 4, "turns": 2, "tool_seconds": 0.01, "query_words": [2, 4], "layers": 1, "width": 16}
REFERENCE = "trl 0.7.11"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", nargs="*", default=["trl_step", REFERENCE], choices=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each library, in turn")
    parser.add_argument("--runs", type=int, default=3, help="runs in each process")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--python", nargs=2, action="append", default=[], metavar=("PEER", "PATH"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    case = QUICK if args.quick else CASE
    if args.quick:
        args.peers, args.rounds, args.runs = ["trl_step"], 1, 1
    seconds: dict[str, list[float]] = {name: [] for name in args.peers}
    processor: dict[str, list[float]] = {name: [] for name in args.peers}
    tokens: dict[str, int] = {}
    for _ in range(args.rounds):
        for name in args.peers:
            job = {"library": PEERS[name].library, "case": case, "runs": args.runs, "threads": args.threads}
            result = run(python_of(PEERS[name], dict(args.python)), "environment_worker.py", job)
            seconds[name] += result["seconds"]
            processor[name] += result["processor_seconds"]
            tokens[name] = result["written_tokens"]
    if len(set(tokens.values())) != 1:
        raise SystemExit(f"the contenders did not write equally many tokens: {tokens}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians.get(REFERENCE)
    rows = [
        [
            name,
            f"{m:.2f}",
            f"{min(seconds[name]):.2f}",
            f"{statistics.median(processor[name]):.2f}",
            f"{case['episodes'] / m:.1f}",
            f"{base / m:.1f}" if base else "",
        ]
        for name, m in medians.items()
    ]
    show(
        f"{case['episodes']} episodes of {case['turns']} turns, a tool of {1000 * case['tool_seconds']:.0f} ms",
        ["library", "s", "min", "processor s", "episodes/s", "speed over 0.7.11"],
        rows,
    )
    if not args.quick:
        save(
            "environment",
            {"case": case, "seconds": seconds, "processor_seconds": processor, "written_tokens": tokens},
            args.output,
        )


if __name__ == "__main__":
    main()
