"""Time until the held-out texts of the sentiment example are positive, compared with the trainers of TRL.

    python benchmarks/time_to_reward.py --tune      # tries learning rates and epochs, with a seed of its own
    python benchmarks/time_to_reward.py             # all contenders, three seeds, with what was the fastest there
    python benchmarks/time_to_reward.py --resume    # keeps the runs that are recorded; also with --tune
    python benchmarks/time_to_reward.py --redraw    # the picture alone, from benchmarks/results/time_to_reward.json
    python benchmarks/time_to_reward.py --quick     # two batches of a tiny model, only to see that it works

The first two take a quarter of an hour on two quiet cores, most of it the first.

A run starts from the example's language model and ends as soon as the mean probability of a positive review, over 256
held-out prompts, is 0.9 with a KL of at most 6 nats per response, the target of PPOConfig: a policy that has left the
reference fools the classifier in two batches. Measured is training alone: sampling, scoring and the update, from the
first batch on, without imports, loading, and the measurements on the held-out prompts. Model, prompts, scores (the
classifier's logit), batches of 64 samples, mini-batches of 32, 24 new tokens at temperature 1, float32 and threads are
the same for all.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from command_line import options, parse
from peers import PEERS, python_of, run
from report import save, save_plot, show

ROOT = Path(__file__).resolve().parents[1]
PLOTS = ROOT / "docs" / "plots"
NAME, TUNING = "time_to_reward", "time_to_reward_tuning"
TASK: dict[str, Any] = {
    "goal": 0.9, "most_kl": 6.0, "held_out": 256, "batch": 64, "mini_batch": 32, "new_tokens": 24, "most_batches": 80,
}  # fmt: skip
QUICK_TASK = {**TASK, "goal": 2.0, "held_out": 4, "batch": 8, "mini_batch": 4, "new_tokens": 4, "most_batches": 2}
QUICK_ASSETS = {
    "train_reviews": 40, "test_reviews": 8, "vocabulary": 400, "layers": 1, "width": 16,
    "model_updates": 2, "classifier_updates": 2,
}  # fmt: skip
TUNING_KL = 5.0
TUNING_SEED = 100
TUNING_BATCHES = 15
RATES = (3e-4, 5e-4, 1e-3)
EPOCHS = (4, 1)


class Contender(NamedTuple):
    """A trainer and its settings.

    Args:
        peer: the library, a key of `PEERS`
        algorithm: "gae" is PPO with a value head
        group: answers to each prompt
        settings: of its configuration, where its own default does not fit
        together: prompts that are sampled together, where the library does not decide that
        tuned_as: it has the learning rate and epochs of that contender
    """

    peer: str
    algorithm: str
    group: int = 1
    settings: tuple[tuple[str, Any], ...] = ()
    together: int | None = None
    tuned_as: str | None = None

    def job(self) -> dict[str, Any]:
        fields = {"algorithm": self.algorithm, "group": self.group, "settings": dict(self.settings)}
        return {**fields, "together": self.together, "library": PEERS[self.peer].library}


class Attempt(NamedTuple):
    """What tells a run from the others; `contender` is a key of `CONTENDERS`."""

    contender: str
    seed: int
    learning_rate: float
    epochs: int


CONTENDERS = {
    "trl_step, PPO": Contender("trl_step", "gae"),
    "trl_step, GRPO": Contender("trl_step", "grpo", group=4, settings=(("advantage_estimator", "grpo"),)),
    "TRL 0.11.4, PPO": Contender("trl 0.11.4", "gae", together=TASK["batch"]),
    "TRL 0.11.4, PPO, 4 together": Contender("trl 0.11.4", "gae", together=4, tuned_as="TRL 0.11.4, PPO"),
    "TRL 1.16.0, GRPO": Contender("trl 1.16.0", "grpo", group=4, settings=(("beta", 0.04),)),
    "TRL 1.16.0, RLOO": Contender("trl 1.16.0", "rloo", group=4),
}

Run = dict[str, Any]


def make_task(folder: Path, quick: bool) -> dict[str, Any]:
    """What all jobs have in common: paths of the example's models and of a file with its prompts, and `TASK`."""
    sys.path.append(str(ROOT / "examples" / "sentiment"))
    from assets import DEFAULT_CACHE, AssetSettings, build_assets
    from transformers import AutoTokenizer

    task = QUICK_TASK if quick else TASK
    settings = AssetSettings(**QUICK_ASSETS) if quick else AssetSettings()
    assets = build_assets(settings, folder / "cache" if quick else DEFAULT_CACHE)
    tokenizer = AutoTokenizer.from_pretrained(assets.model)

    def beginnings(split: str) -> list[str]:
        """Of 2 to 8 tokens, as in the example."""
        lines = (assets.reviews / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        cut = random.Random(0)
        texts = [json.loads(line)["text"] for line in lines]
        rows = tokenizer(texts, truncation=True, max_length=8)["input_ids"]
        return [tokenizer.decode(row[: cut.randint(2, 8)]) for row in rows]

    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps({"train": beginnings("train"), "held_out": beginnings("test")[: task["held_out"]]}))
    return {**task, "model": str(assets.model), "classifier": str(assets.classifier), "prompts": str(prompts)}


def summary(attempt: Attempt, result: dict[str, Any]) -> Run:
    """A run as it is recorded."""
    last = result["course"][-1]
    return {
        **attempt._asdict(),
        "batches": len(result["course"]) - 1, "wall": last["wall"], "cpu": last["cpu"],
        "reached": result["reached"], "kl": last["kl"], "distinct": last["distinct"],
        "parts": {part: [round(s, 3) for s in seconds] for part, seconds in result["parts"].items()},
        "versions": result["versions"], "course": result["course"],
    }  # fmt: skip


def identity(run_: Run) -> Attempt:
    return Attempt(*(run_[field] for field in Attempt._fields))


def fastest(name: str, tried: list[Run]) -> tuple[float, int]:
    """Learning rate and epochs with which a contender reached the goal with the fewest processor seconds, at a KL of
    `TUNING_KL` at most: what scarcely holds in one run fails in the next.

    Raises:
        SystemExit: it reached the goal with none of them.
    """
    tuned = CONTENDERS[name].tuned_as or name
    reached = [run_ for run_ in tried if run_["contender"] == tuned and run_["reached"] and run_["kl"] <= TUNING_KL]
    if not reached:
        raise SystemExit(f"no settings are known with which {name} reaches the goal: run with --tune first")
    best = min(reached, key=lambda run_: run_["cpu"])
    return best["learning_rate"], best["epochs"]


def attempts(arguments: argparse.Namespace) -> list[Attempt]:
    """The runs to make; contenders alternate."""
    names = [name for name, contender in CONTENDERS.items() if contender.peer in arguments.peers]
    if arguments.tune:
        tried = [(rate, epochs) for epochs in EPOCHS for rate in RATES]
        own = [name for name in names if CONTENDERS[name].tuned_as is None]
        return [Attempt(name, TUNING_SEED, *settings) for settings in tried for name in own]
    if arguments.quick:
        return [Attempt(name, 0, RATES[0], 2) for name in names]
    known = recorded(arguments.output, TUNING)
    return [Attempt(name, seed, *fastest(name, known)) for seed in arguments.seeds for name in names]


def recorded(folder: Path, file: str) -> list[Run]:
    path = folder / f"{file}.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


def measure(arguments: argparse.Namespace, file: str) -> list[Run]:
    """All wanted runs; each is recorded as soon as it has ended."""
    wanted = attempts(arguments)
    runs = recorded(arguments.output, file) if arguments.resume else []
    known = {identity(run_) for run_ in runs}
    with tempfile.TemporaryDirectory() as folder:
        task = make_task(Path(folder), arguments.quick) | {"threads": arguments.threads}
        task |= {"most_batches": TUNING_BATCHES} if arguments.tune else {}
        for attempt in wanted:
            if attempt in known:
                continue
            print("==", *attempt, flush=True)
            contender = CONTENDERS[attempt.contender]
            python = python_of(PEERS[contender.peer], dict(arguments.python))
            result = run(python, "time_to_reward_worker.py", {**attempt._asdict(), **contender.job(), **task})
            runs.append(summary(attempt, result))
            if not arguments.quick:
                save(file, {"task": TASK, "threads": arguments.threads, "runs": runs}, arguments.output)
    return runs


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Median and range, or the single value."""
    found = sorted(values)
    if len(found) == 1:
        return f"{found[0]:.{digits}f}"
    return f"{statistics.median(found):.{digits}f} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


def rows_of(runs: list[Run]) -> list[list[str]]:
    """One row per contender: median and range over the seeds."""
    rows = []
    for name in dict.fromkeys(run_["contender"] for run_ in runs):
        mine = [run_ for run_ in runs if run_["contender"] == name]
        rows.append(
            [
                name,
                f"{sum(run_['reached'] for run_ in mine)} of {len(mine)}",
                spread((run_["batches"] for run_ in mine), 0),
                spread(run_["wall"] for run_ in mine),
                spread(run_["cpu"] for run_ in mine),
                *(f"{statistics.median(run_['parts'][part][1] for run_ in mine):.1f}" for part in PARTS),
                spread(run_["kl"] for run_ in mine),
            ]
        )
    return rows


PARTS = ("sampling", "scoring", "update")
HEADER = ["contender", "reached", "batches", "s", "CPU s", *(f"{part}, CPU s" for part in PARTS), "KL"]


def draw(runs: list[Run], path: Path) -> None:
    """Reward over seconds: a line for each run, up to the goal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(run_["contender"] for run_ in runs))
    axes = {"wall": "seconds of training (wall)", "cpu": "seconds of training (processor, both cores)"}
    for panel, (key, label) in zip(figure.subplots(1, 2, sharey=True), axes.items(), strict=True):
        for run_ in runs:
            course, color = run_["course"], f"C{names.index(run_['contender'])}"
            times, rewards = [point[key] for point in course], [point["reward"] for point in course]
            panel.plot(times, rewards, color=color, linewidth=1.2, alpha=0.8, label=run_["contender"])
            if run_["reached"]:
                panel.plot(times[-1], rewards[-1], "o", color=color, markersize=4)
        panel.axhline(TASK["goal"], color="0.5", linewidth=0.8, linestyle="--")
        panel.set_xlabel(label, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.set_xlim(left=0)
        panel.grid(alpha=0.3)
    figure.axes[0].set_ylabel("mean probability of a positive review", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    first = {label: handle for handle, label in reversed(list(zip(handles, labels, strict=True)))}
    figure.legend([first[name] for name in names], names, loc="outside upper center", ncols=3, fontsize=9)
    save_plot(figure, path)


def main() -> None:
    parser = options(__doc__, sorted({contender.peer for contender in CONTENDERS.values()}))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--resume", action="store_true", help="keep the runs that are recorded")
    parser.add_argument("--tune", action="store_true", help="try learning rates and epochs")
    parser.add_argument("--redraw", action="store_true", help="draw what is recorded")
    parser.add_argument("--plots", type=Path, default=PLOTS, help="folder for the picture")
    arguments = parse(parser)
    file = TUNING if arguments.tune else NAME
    runs = recorded(arguments.output, file) if arguments.redraw else measure(arguments, file)
    if arguments.tune:
        header = ["contender", "learning rate", "epochs", *HEADER[1:]]
        rows = [[run_["contender"], f"{run_['learning_rate']:g}", str(run_["epochs"]), *rows_of([run_])[0][1:]]
                for run_ in sorted(runs, key=identity)]  # fmt: skip
        show("settings that were tried", header, rows)
        return
    show("until the held-out texts are positive", HEADER, rows_of(runs))
    with tempfile.TemporaryDirectory() as folder:
        draw(runs, (Path(folder) if arguments.quick else arguments.plots) / f"{NAME}.png")


if __name__ == "__main__":
    main()
