"""Time of `trainer.generate` with default batching, on ragged prompts, compared with release 0.7.11.

python benchmarks/generate.py
python benchmarks/generate.py --quick    # only to see that it works
"""

from __future__ import annotations

import statistics

from cases import Case, quick
from command_line import options, parse
from peers import PEERS, python_of, run
from report import save, show

CASE = Case("generate", layers=4, width=256, samples=64, query=(8, 96), response=(32, 32))
REFERENCE = "trl 0.7.11"


def main() -> None:
    args = parse(options(__doc__, [n for n, peer in PEERS.items() if "gae" in peer.algorithms], rounds=3, steps=3))
    case = quick(CASE) if args.quick else CASE
    seconds: dict[str, list[float]] = {name: [] for name in args.peers}
    tokens: dict[str, int] = {}
    for _ in range(args.rounds):
        for name in args.peers:
            job = {"library": PEERS[name].library, "case": case.arguments()}
            job |= {"steps": args.steps, "threads": args.threads}
            result = run(python_of(PEERS[name], dict(args.python)), "generate_worker.py", job)
            seconds[name] += result["seconds"]
            tokens[name] = result["new_tokens"][0]
    if len(set(tokens.values())) != 1:
        raise SystemExit(f"the contenders did not sample the same number of tokens: {tokens}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base = medians.get(REFERENCE)
    rows = [
        [name, f"{m:.2f}", f"{min(seconds[name]):.2f}", f"{tokens[name] / m:.0f}", f"{base / m:.2f}" if base else ""]
        for name, m in medians.items()
    ]
    show(
        f"generate: {case.samples} prompts of {case.query[0]}-{case.query[1]} tokens, {case.response[1]} new ones each",
        ["library", "s", "min", "new tokens/s", "speed over 0.7.11"],
        rows,
    )
    if not args.quick:
        save("generate", {"case": case.arguments(), "seconds": seconds, "new_tokens": tokens}, args.output)


if __name__ == "__main__":
    main()
