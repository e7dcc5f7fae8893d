"""The sentiment example with three seeds: what it claims about reward, KL, variety and time, as a table and JSON.

    python benchmarks/demo_seeds.py

The built-in model and data are built anew, in the first run; options behind `--` go to the example.
Ends with status 1 if a run misses a bound.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "sentiment" / "ppo_sentiment.py"
COLUMNS = (
    "seed", "steps", "reward_first", "reward_last", "kl_last", "distinct_responses", "seconds", "cpu_seconds", "holds"
)  # fmt: skip


def run_example(seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """The summary of one run in a process of its own, with its processor time added."""
    output = folder / f"seed{seed}"
    before = os.times()
    command = [sys.executable, str(SCRIPT), "--seed", str(seed), "--output_dir", str(output), *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # threads that wait asleep: spinning ones take ten times as long where other processes share the cores
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}
    subprocess.run([*command, "--cache_dir", str(folder / "cache")], check=True, env=environment)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    return {**summary, "cpu_seconds": round(cpu, 1), "holds": holds(summary)}


def holds(run: dict[str, Any]) -> bool:
    """Whether a run stays within the bounds that the example promises."""
    return (
        run["reward_first"] <= 0.65
        and run["reward_last"] >= 0.9
        and run["kl_last"] < 15
        and 2 * run["distinct_responses"] >= run["held_out"]
        and run["seconds"] < 300
    )


def print_table(runs: list[dict[str, Any]]) -> None:
    """One line per run, columns aligned."""
    rows = [[f"{value:.3f}" if isinstance(value, float) else str(value) for value in pick(run)] for run in runs]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in [list(COLUMNS), *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def pick(run: dict[str, Any]) -> list[Any]:
    """A run's values in the order of the columns."""
    return [run[column] for column in COLUMNS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "demo_seeds.json")
    parser.add_argument("options", nargs="*", help="options for the example, behind --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_example(seed, Path(folder), arguments.options) for seed in arguments.seeds]
    print_table(runs)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
    }
    arguments.out.write_text(json.dumps({"machine": machine, "runs": runs}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(run["holds"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
