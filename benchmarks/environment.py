"""Episodes per second of `TextEnvironment.run` and of release 0.7.11: 32 episodes of 4 turns, a tool that takes 50 ms.

python benchmarks/environment.py
python benchmarks/environment.py --quick    # only to see that it works
"""

from __future__ import annotations

import statistics
from typing import Any

from command_line import options, parse
from peers import PEERS, python_of, run
from report import save, show

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
    args = parse(options(__doc__, ["trl_step", REFERENCE], rounds=3, runs=3))
    case = QUICK if args.quick else CASE
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
        raise SystemExit(f"the contenders did not write the same number of tokens: {tokens}")
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
