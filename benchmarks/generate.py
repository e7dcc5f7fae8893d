"""Time of sampling, compared with older releases and with what transformers has.

python benchmarks/generate.py
python benchmarks/generate.py --quick    # only to see that it works

Cases: `equal` (64 prompts of 8-96 tokens, every answer has 32), `ragged` (the same prompts; an answer ends after each
token with the probability 1/24, at most 128), `n8` (8 prompts of 256 tokens, 8 answers of 32 each). Contenders:
`trainer.generate` of the libraries; `transformers`: one padded batch through the model's `generate`, which is what the
trainers of TRL 1.x do; `generate_batch`: its continuous batching.
"""

from __future__ import annotations

import statistics
from dataclasses import replace

from cases import Case, quick
from command_line import options, parse
from peers import PEERS, python_of, run
from report import save, show

EQUAL = Case("equal", layers=4, width=256, samples=64, query=(8, 96), response=(32, 32))
CASES = {
    "equal": EQUAL,
    "ragged": replace(EQUAL, name="ragged", response=(24, 128)),
    "n8": replace(EQUAL, name="n8", query=(256, 256), group=8),
}
REFERENCE = "trl 0.7.11"
CONTENDERS = {
    "trl_step": "trl_step",
    "trl_step, log-probs": "trl_step",
    "trl 0.7.11": "trl 0.7.11",
    "trl 0.11.4": "trl 0.11.4",
    "transformers": "trl_step",
    "generate_batch": "trl_step",
}
"""Name of each contender and the library in whose environment it runs."""


def main() -> None:
    args = parse(options(__doc__, sorted(set(CONTENDERS.values())), rounds=2, steps=2))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, case in CASES.items():
        sized = replace(quick(case), group=min(case.group, 2)) if args.quick else case
        runs: dict[str, list[dict]] = {}
        for _ in range(args.rounds):
            for contender, peer in CONTENDERS.items():
                if peer not in args.peers or (args.quick and contender == "generate_batch"):  # it starts in a minute
                    continue
                job = {"library": PEERS[peer].library, "contender": contender, "case": sized.arguments()}
                job |= {"steps": args.steps, "threads": args.threads}
                runs.setdefault(contender, []).append(
                    run(python_of(PEERS[peer], dict(args.python)), "generate_worker.py", job)
                )
        found[name] = {contender: of_runs(results) for contender, results in runs.items()}
    show(
        "seconds per 1,000 new tokens",
        ["case", "contender", "s", "least", "over the limit", "time over 0.7.11's"],
        [row for name, by_name in found.items() for row in rows_of(name, by_name)],
    )
    if not args.quick:
        save("generate", {"cases": {n: c.arguments() for n, c in CASES.items()}, "seconds": found}, args.output)


def of_runs(results: list[dict]) -> dict[str, float]:
    """Median and least seconds per 1,000 new tokens of all timed calls; the limit in the same unit."""
    rates = [1000 * s / n for result in results for s, n in zip(result["seconds"], result["new_tokens"], strict=True)]
    return {
        "median": statistics.median(rates),
        "least": min(rates),
        "limit": statistics.median(result["limit"] for result in results),
    }


def rows_of(name: str, by_name: dict[str, dict[str, float]]) -> list[list[str]]:
    base = by_name.get(REFERENCE)
    return [
        [name, contender, f"{r['median']:.2f}", f"{r['least']:.2f}", f"{r['median'] / r['limit']:.1f}",
         f"{r['median'] / base['median']:.2f}" if base else ""]
        for contender, r in by_name.items()
    ]  # fmt: skip


if __name__ == "__main__":
    main()
