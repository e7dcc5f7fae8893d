"""The effect of a setting on the curves of a run: the sentiment example with one setting changed, as PNGs and JSON.

    python benchmarks/curves.py              # all runs, then docs/plots/*.png; a quarter of an hour on two cores
    python benchmarks/curves.py --only estimators    # the runs of one plot; the others stay as they were recorded
    python benchmarks/curves.py --redraw     # the plots alone, from benchmarks/results/curves.json
    python benchmarks/curves.py --quick      # two steps of a tiny model, only to see that it works

All runs have the same seed and see the same number of samples.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from demo_seeds import ROOT, SCRIPT, TINY
from report import RESULTS, save, save_plot, show

from trl_step.commands.saved_runs import saved_runs

PLOTS = ROOT / "docs" / "plots"
SAMPLES = 40 * 64
DEFAULT = "default"
EXPERIMENTS: dict[str, dict[str, list[str]]] = {
    "sound": {DEFAULT: []},
    "learning_rate": {
        "learning_rate=1e-5": ["--learning_rate=1e-5"],
        DEFAULT: [],
        "learning_rate=1e-2": ["--learning_rate=1e-2"],
    },
    "kl": {
        "init_kl_coef=0": ["--init_kl_coef=0", "--no-adap_kl_ctrl"],
        DEFAULT: [],
        "init_kl_coef=2, fixed": ["--init_kl_coef=2", "--no-adap_kl_ctrl"],
    },
    "batch_size": {
        "batch_size=8": ["--batch_size=8", "--mini_batch_size=8"],
        DEFAULT: [],
        "batch_size=256": ["--batch_size=256"],
    },
    "epochs": {
        "ppo_epochs=1": ["--ppo_epochs=1"],
        DEFAULT: [],
        "ppo_epochs=10": ["--ppo_epochs=10"],
        "cliprange=0.02": ["--cliprange=0.02"],
    },
    "estimators": {
        DEFAULT: [],
        "grpo": ["--advantage_estimator=grpo", "--answers_per_query=4"],
        "rloo": ["--advantage_estimator=rloo", "--answers_per_query=4"],
    },
}
"""The lines of each plot: a name and the options of the example. The default has a learning rate of 3e-4, batches of
64, mini-batches of 32, 4 PPO epochs, a clip range of 0.2 and a KL coefficient of 0.2 that adapts to a target of 6."""
PANELS = {
    "env/reward_mean": "mean score",
    "objective/kl": "KL (nats per response)",
    "ppo/policy/entropy": "entropy (nats per token)",
    "ppo/policy/clipfrac": "share of clipped tokens",
    "ppo/val/var_explained": "explained variance",
    "objective/kl_coef": "KL coefficient",
}

Curves = dict[str, list[float]]


def run_example(options: list[str], folder: Path, cache: Path) -> Curves:
    """The values of `PANELS` in every step, as far as they are logged; under "samples" the number of samples so far."""
    command = [sys.executable, str(SCRIPT), "--output_dir", str(folder), "--cache_dir", str(cache), *options]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run(command, check=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": path})
    ((_, steps),) = saved_runs(folder / "tensorboard")
    curves = {key: [round(step[key], 4) for step in steps] for key in PANELS if key in steps[0]}
    batch_size = next((int(word.partition("=")[2]) for word in options if word.startswith("--batch_size=")), 64)
    return {"samples": [float(batch_size * (i + 1)) for i in range(len(steps))], **curves}


def measure(folder: Path, quick: bool, only: str | None) -> dict[str, dict[str, Curves]]:
    """Curves by plot and line; a line that is in several plots is run once."""
    wanted = {plot: lines for plot, lines in EXPERIMENTS.items() if only in (None, plot)}
    common = [*TINY, "--log_with=tensorboard"] if quick else [f"--steps={SAMPLES}"]
    runs: dict[str, Curves] = {}
    for lines in wanted.values():
        for name, options in lines.items():
            if name not in runs and not (quick and runs):
                print(f"== {name}", flush=True)
                runs[name] = run_example([*common, *options], folder / f"run{len(runs)}", folder / "cache")
    if quick:
        return {"sound": runs}
    return {plot: {name: runs[name] for name in lines} for plot, lines in wanted.items()}


def draw(plot: str, lines: dict[str, Curves], folder: Path) -> Path:
    """One PNG with a panel for each of `PANELS`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (key, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for name, curves in lines.items():
            if key in curves:
                panel.plot(curves["samples"], curves[key], label=name, linewidth=1.2)
        panel.set_title(title, fontsize=10)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        if key == "ppo/val/var_explained":
            panel.set_ylim(-1, 1)
    figure.supxlabel("samples seen", fontsize=9)
    if len(lines) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(lines), fontsize=9)
    path = folder / f"{plot}.png"
    save_plot(figure, path)
    return path


def last_values(lines: dict[str, Curves]) -> list[list[str]]:
    """For each line the mean of the last tenth of each curve."""

    def last(curve: list[float]) -> float:
        tail = curve[-max(1, len(curve) // 10) :]
        return sum(tail) / len(tail)

    return [
        [name, *(f"{last(curves[key]):.2f}" if key in curves else "-" for key in PANELS)]
        for name, curves in lines.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--redraw", action="store_true")
    parser.add_argument("--only", choices=EXPERIMENTS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plots", type=Path, default=PLOTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.redraw:
            plots = json.loads((arguments.results / "curves.json").read_text(encoding="utf-8"))["plots"]
        else:
            plots = measure(Path(folder), arguments.quick, arguments.only)
        target = Path(folder) if arguments.quick else arguments.plots
        for plot, lines in plots.items():
            show(
                f"{draw(plot, lines, target).name}: means of the last tenth",
                ["line", *PANELS.values()],
                last_values(lines),
            )
    if not arguments.redraw and not arguments.quick:
        if arguments.only:
            recorded = json.loads((arguments.results / "curves.json").read_text(encoding="utf-8"))["plots"]
            plots = recorded | plots
        save("curves", {"plots": plots}, arguments.results)


if __name__ == "__main__":
    main()
