"""Import of trl_step beside that of torch: CPU seconds and memory of fresh processes.

    python benchmarks/import_time.py
    python benchmarks/import_time.py --quick    # one process each, to see that it works

`import trl_step` imports nothing heavy; what is used is imported when it is first named. The least of the rounds is
shown: other work on the machine only adds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from command_line import options, parse
from report import save, show

ROOT = Path(__file__).resolve().parents[1]
STATEMENTS = (
    "import torch",
    "import trl_step",
    "from trl_step import PPOConfig",
    "from transformers import PreTrainedModel",
    "from trl_step import PPOTrainer",
    "from trl_step import SFTTrainer",
    "trl_step --help",
    "trl_step port --check",
)
"""What is timed: a statement, or a command of the console."""
COMMAND = "from trl_step.commands import main\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass"
REPORT = """
import json, resource, sys
usage = resource.getrusage(resource.RUSAGE_SELF)
peak_mb = usage.ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)
print(json.dumps({"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_mb": peak_mb, "modules": len(sys.modules)}))
"""


def measured(statement: str) -> dict[str, float]:
    """CPU seconds, peak memory in MB and the number of modules of a fresh process, the interpreter's own included."""
    program, *words = statement.split()
    if program == "trl_step":
        script = [str(Path(__file__))] if "--check" in words else []
        statement = COMMAND.format(words=[*words, *script])
    done = subprocess.run(
        [sys.executable, "-c", statement + REPORT], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse(options(__doc__, rounds=5))
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    runs: dict[str, list[dict[str, float]]] = {statement: [] for statement in STATEMENTS}
    for _ in range(args.rounds):
        for statement in STATEMENTS:
            runs[statement].append(measured(statement))
    found: dict[str, Any] = {
        statement: {name: min(run[name] for run in results) for name in results[0]}
        for statement, results in runs.items()
    }
    base = found["import torch"]["cpu_seconds"]
    rows = [
        [statement, f"{r['cpu_seconds']:.2f}", f"{r['cpu_seconds'] / base:.2f}", f"{r['peak_mb']:.0f}"]
        for statement, r in found.items()
    ]
    show("what an import costs", ["statement", "CPU s", "over torch's", "peak MB"], rows)
    if not args.quick:
        save("import_time", {"statements": found}, args.output)


if __name__ == "__main__":
    main()
