"""The sentiment example with three seeds, by PPO with a value head and by comparing answers: checks its claims about
reward, KL, variety and time; a table and JSON.

    python benchmarks/demo_seeds.py
    python benchmarks/demo_seeds.py --estimators gae --seeds 0
    python benchmarks/demo_seeds.py --quick    # two steps of a tiny model, only to see that it works

The built-in model and data are built again, in the first run; options after `--` are passed to the example.
Ends with status 1 if a run misses a bound.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import RESULTS, save, show

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "examples" / "sentiment" / "ppo_sentiment.py"
COLUMNS = (
    "estimator", "seed", "steps", "reward_first", "reward_last", "step_above", "kl_last", "distinct_responses",
    "seconds", "cpu_seconds", "holds",
)  # fmt: skip
ESTIMATORS: dict[str, list[str]] = {
    "gae": [],
    "grpo": ["--advantage_estimator=grpo", "--answers_per_query=4"],
    "rloo": ["--advantage_estimator=rloo", "--answers_per_query=4"],
}
GOAL = math.log(0.9 / 0.1)
"""The classifier's logit at which the probability of "positive" is 0.9."""
TINY = [
    "--assets.train_reviews=40", "--assets.test_reviews=8", "--assets.vocabulary=400", "--assets.layers=1",
    "--assets.width=16", "--assets.model_updates=2", "--assets.classifier_updates=2", "--batch_size=4",
    "--mini_batch_size=2", "--steps=2", "--held_out=4", "--max_new_tokens=5",
]  # fmt: skip


def run_example(estimator: str, seed: int, folder: Path, options: list[str]) -> dict[str, Any]:
    """The summary of one run in a separate process, with its CPU time and `step_above`: the first step whose responses
    had a mean logit above `GOAL`, 0 if there was none."""
    output = folder / f"{estimator}{seed}"
    before = os.times()
    command = [sys.executable, str(SCRIPT), "--seed", str(seed), "--output_dir", str(output), *ESTIMATORS[estimator]]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # waiting threads sleep: spinning ones take ten times as long if other processes share the cores
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path}
    subprocess.run([*command, *options, "--cache_dir", str(folder / "cache")], check=True, env=environment)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    lines = (output / "history.jsonl").read_text(encoding="utf-8").splitlines()
    above = [number for number, line in enumerate(lines, start=1) if json.loads(line)["reward"] > GOAL]
    known = {"estimator": estimator, "step_above": above[0] if above else 0, "cpu_seconds": round(cpu, 1)}
    return {**summary, **known, "holds": holds(summary)}


def holds(run: dict[str, Any]) -> bool:
    """Whether a run stays within the bounds that the example promises."""
    return (
        run["reward_first"] <= 0.65
        and run["reward_last"] >= 0.9
        and run["kl_last"] < 15
        and 2 * run["distinct_responses"] >= run["held_out"]
        and run["seconds"] < 300
    )


def cells(run: dict[str, Any]) -> list[str]:
    """A run's values in the order of the columns."""
    return [f"{run[name]:.3f}" if isinstance(run[name], float) else str(run[name]) for name in COLUMNS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("options", nargs="*", help="options for the example, after --")
    arguments = parser.parse_args()
    seeds, options = (arguments.seeds[:1], TINY) if arguments.quick else (arguments.seeds, [])
    estimators = arguments.estimators[:1] if arguments.quick else arguments.estimators
    with tempfile.TemporaryDirectory() as folder:
        runs = [
            run_example(estimator, seed, Path(folder), [*options, *arguments.options])
            for estimator in estimators
            for seed in seeds
        ]
    show("the sentiment example", COLUMNS, [cells(run) for run in runs])
    if arguments.quick:
        return 0
    save("demo_seeds", {"threads": os.environ.get("OMP_NUM_THREADS"), "runs": runs}, arguments.output)
    return 0 if all(run["holds"] for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
