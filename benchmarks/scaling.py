"""How time and memory of a step grow with the response tokens, the vocabulary and the batch.

python benchmarks/scaling.py
python benchmarks/scaling.py --quick    # only to see that it works
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace

from cases import Case
from command_line import options, parse
from peers import run
from report import save, show

BASE = Case("scaling", layers=4, width=256, samples=16, query=(64, 64), response=(64, 64))
SWEEPS = {
    "response tokens": [replace(BASE, response=(n, n)) for n in (32, 64, 128, 256)],
    "samples": [replace(BASE, samples=n) for n in (8, 16, 32, 64)],
    "vocabulary": [replace(BASE, vocabulary=n) for n in (12_500, 25_000, 50_257, 100_000)],
}
SMALL = {"samples": 4, "layers": 1, "width": 32, "query": (4, 4), "mini_batch": 2}


def main() -> None:
    args = parse(options(__doc__, steps=3))
    found: dict[str, list[dict[str, float]]] = {}
    for name, cases in SWEEPS.items():
        found[name] = []
        for case in cases[:2] if args.quick else cases:
            used = replace(case, **SMALL, response=(4, 4)) if args.quick else case
            job = {"library": "trl_step", "case": used.arguments(), "steps": args.steps}
            result = run(sys.executable, "worker.py", job | {"threads": args.threads})
            size = {"response tokens": case.response[1], "samples": case.samples, "vocabulary": case.vocabulary}[name]
            found[name].append(
                {
                    "size": size,
                    "seconds": statistics.median(result["seconds"]),
                    "peak_mb": result["peak_mb"],
                    "saved_mb": result["saved_mb"],
                }
            )
        rows = [
            [f"{r['size']}", f"{r['seconds']:.2f}", f"{r['peak_mb']:.0f}", f"{r['saved_mb']:.1f}"] for r in found[name]
        ]
        show(f"growth with {name}", [name, "s/step", "peak MB", "kept for backward MB"], rows)
    if not args.quick:
        save("scaling", {"sweeps": found}, args.output)


if __name__ == "__main__":
    main()
