"""Tables of what was measured, from the files that the scripts in benchmarks/ write."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.cases import CASES, Case
from tests.markdown_pages import ROOT

REFERENCE = "trl 0.7.11"


def results(name: str) -> dict[str, Any]:
    """The last recorded run of a benchmark."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, numbers as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def step_table() -> str:
    """One row per case: release 0.7.11 beside `trl_step`."""
    header = ["case, samples x (query + response)", "0.7.11", "`trl_step`", "time over 0.7.11's", "time over the limit",
              "peak over 0.7.11's"]  # fmt: skip
    rows = []
    for name, by_peer in results("step")["cases"].items():
        ours, theirs = by_peer["trl_step"], by_peer[REFERENCE]
        rows.append(
            [describe(CASES[name]), f"{theirs['seconds']:.1f} s", f"{ours['seconds']:.1f} s",
             f"{ours['seconds'] / theirs['seconds']:.2f}", f"{ours['ratio_to_limit']:.1f}",
             f"{ours['peak_mb'] / theirs['peak_mb']:.2f}"]
        )  # fmt: skip
    return markdown(header, rows)


def one_step_table(name: str = "fixed") -> str:
    """Time and memory of a step of one case beside release 0.7.11."""
    ours, theirs = (results("step")["cases"][name][peer] for peer in ("trl_step", REFERENCE))
    header = [f"a step: {describe(CASES[name]).split(': ')[1]}", "TRL 0.7.11", "`trl_step`", "ratio"]
    rows = [
        [what, f"{theirs[key]:.{digits}f} {unit}", f"{ours[key]:.{digits}f} {unit}", f"{ours[key] / theirs[key]:.2f}"]
        for what, key, unit, digits in (
            ("time", "seconds", "s", 1),
            ("memory: growth of the peak during the step", "peak_mb", "MB", 0),
        )
    ]
    return markdown(header, rows)


def describe(case: Case) -> str:
    """A case in words."""
    if case.shared_layers:
        return f"{case.name}: `fixed` with {case.shared_layers} layers shared"
    if case.lora:
        return f"{case.name}: `fixed` with adapters of rank 16"
    spans = (" to ".join(str(n) for n in dict.fromkeys(span)) for span in (case.query, case.response))
    return f"{case.name}: {case.layers} layers, width {case.width}, {case.samples} x ({' + '.join(spans)})"


def peers_table() -> str:
    """One row per case and library."""
    header = ["case", "library", "s", "least", "CPU s", "time over the limit", "peak MB"]
    rows = [
        [case, peer, f"{r['seconds']:.2f}", f"{r['seconds_min']:.2f}", f"{r['cpu_seconds']:.1f}",
         f"{r['ratio_to_limit']:.2f}", f"{r['peak_mb']:.0f}"]
        for case, by_peer in results("step")["cases"].items()
        for peer, r in by_peer.items()
    ]  # fmt: skip
    return markdown(header, rows)


def algorithms_table() -> str:
    """One row per case and library, where algorithms were timed on one shape; `gae` is that of `trl_step`."""
    found = results("algorithms")["cases"]
    rows = []
    for case, by_peer in found.items():
        gae, ours = found[CASES[case].shape]["trl_step"], by_peer["trl_step"]
        for peer, r in by_peer.items():
            rows.append(
                [case, peer, f"{r['seconds']:.2f}", f"{r['seconds'] / gae['seconds']:.2f}",
                 f"{r['seconds'] / ours['seconds']:.2f}", f"{r['peak_mb']:.0f}"]
            )  # fmt: skip
    return markdown(["case", "library", "s", "time over `gae`'s", "time over `trl_step`'s", "peak MB"], rows)


def seeds_table() -> str:
    """One row per estimator and seed of the sentiment example."""
    header = ["`advantage_estimator`", "seed", "reward before", "after", "first step above 0.9", "KL at the end",
              "steps", "s", "CPU s"]  # fmt: skip
    rows = [
        [run["estimator"], str(run["seed"]), f"{run['reward_first']:.3f}", f"{run['reward_last']:.3f}",
         str(run["step_above"]), f"{run['kl_last']:.1f}", str(run["steps"]), f"{run['seconds']:.0f}",
         f"{run['cpu_seconds']:.0f}"]
        for run in results("demo_seeds")["runs"]
    ]  # fmt: skip
    return markdown(header, rows)


def generate_table() -> str:
    """One row per case and contender; seconds per 1,000 new tokens."""
    rows = []
    for case, by_name in results("generate")["seconds"].items():
        base = by_name[REFERENCE]["median"]
        for contender, r in by_name.items():
            rows.append(
                [case, contender, f"{r['median']:.2f}", f"{r['median'] / base:.2f}", f"{r['median'] / r['limit']:.1f}"]
            )
    return markdown(
        ["case", "contender", "s per 1,000 new tokens", "time over 0.7.11's", "over the memory's limit"], rows
    )


def rewards_table() -> str:
    """One row per trainer: median and range over the seeds of a run up to the goal."""
    runs = results("time_to_reward")["runs"]
    rows = []
    for name in dict.fromkeys(run["contender"] for run in runs):
        mine = [run for run in runs if run["contender"] == name]
        parts = [statistics.median(run["parts"][part][1] for run in mine) for part in REWARD_PARTS]
        rows.append(
            [name, f"{sum(run['reached'] for run in mine)} of {len(mine)}",
             *(spread([run[key] for run in mine], digits) for key, digits in REWARD_COLUMNS.items()),
             *(f"{seconds:.1f}" for seconds in parts)]
        )  # fmt: skip
    header = ["trainer", "reached", "batches", "s", "CPU s", "KL at the end", *REWARD_PARTS]
    return markdown(header, rows)


def short_rewards_table() -> str:
    """Per trainer the median and range of the time of a run up to the goal, and that median over the least one here."""
    seconds: dict[str, list[float]] = {}
    for run in results("time_to_reward")["runs"]:
        seconds.setdefault(run["contender"], []).append(run["wall"])
    best = min(statistics.median(values) for name, values in seconds.items() if name.startswith("trl_step"))
    rows = [[name, spread(values, 1), f"{statistics.median(values) / best:.1f}"] for name, values in seconds.items()]
    return markdown(["a run to a mean probability of 0.9", "seconds", "over the fastest here"], rows)


REWARD_PARTS = ("sampling", "scoring", "update")
REWARD_COLUMNS = {"batches": 0, "wall": 1, "cpu": 1, "kl": 1}


def spread(values: Sequence[float], digits: int) -> str:
    """Median and range, or the single value."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def tuning_table() -> str:
    """CPU seconds up to the goal for each setting that was tried; the chosen ones in bold."""
    chosen = {(r["contender"], r["learning_rate"], r["epochs"]) for r in results("time_to_reward")["runs"]}
    tried = {(r["contender"], r["learning_rate"], r["epochs"]): r for r in results("time_to_reward_tuning")["runs"]}
    settings = sorted({key[1:] for key in tried}, key=lambda key: (-key[1], key[0]))

    def cell(key: tuple[str, float, int]) -> str:
        if key not in tried:
            return "not tried"
        text = f"{tried[key]['cpu']:.1f}" if tried[key]["reached"] else "not reached"
        return f"**{text}**" if key in chosen else text

    return markdown(
        ["trainer", *(f"{rate:g}, {epochs} {'epoch' if epochs == 1 else 'epochs'}" for rate, epochs in settings)],
        [[name, *(cell((name, *key)) for key in settings)] for name in dict.fromkeys(key[0] for key in tried)],
    )


def scaling_table() -> str:
    """One row per size."""
    return markdown(
        ["what grows", "size", "s", "peak MB", "kept for the backward pass, MB"],
        [
            [name, f"{r['size']:,}", f"{r['seconds']:.2f}", f"{r['peak_mb']:.0f}", f"{r['saved_mb']:.1f}"]
            for name, rows in results("scaling")["sweeps"].items()
            for r in rows
        ],
    )


def imports_table() -> str:
    """One row per statement or command."""
    statements = results("import_time")["statements"]
    base = statements["import torch"]["cpu_seconds"]
    return markdown(
        ["a fresh process with", "CPU s", "over `import torch`", "peak MB"],
        [
            [f"`{statement}`", f"{r['cpu_seconds']:.2f}", f"{r['cpu_seconds'] / base:.2f}", f"{r['peak_mb']:.0f}"]
            for statement, r in statements.items()
        ],
    )


def options_table() -> str:
    """One row per setting."""
    settings = results("options")["settings"]
    base = settings["defaults"]
    return markdown(
        ["setting", "time over the defaults'", "CPU time", "peak MB", "kept for the backward pass, MB",
         "a statistic moves by at most"],
        [
            [f"`{name}`" if "=" in name else name, f"{r['seconds'] / base['seconds']:.2f}",
             f"{r['cpu_seconds'] / base['cpu_seconds']:.2f}", f"{r['peak_mb']:.0f}", f"{r['saved_mb']:.0f}",
             f"{r['moved']:.1%}"]
            for name, r in settings.items()
        ],
    )  # fmt: skip


def episodes_table() -> str:
    """One row per library."""
    found = results("environment")
    medians = {peer: statistics.median(seconds) for peer, seconds in found["seconds"].items()}
    episodes = found["case"]["episodes"]
    return markdown(
        ["library", "s", "episodes per second", "speed over 0.7.11's"],
        [[peer, f"{m:.2f}", f"{episodes / m:.1f}", f"{medians[REFERENCE] / m:.1f}"] for peer, m in medians.items()],
    )


def gpu_report() -> str:
    """What the last run of `gpu_check.py` saw, in a few sentences."""
    file = ROOT / "benchmarks" / "results" / "gpu_check.json"
    if not file.exists():
        return "**GPUs:** never run on a GPU so far. `make gpu-check` is what to run on one: eight minutes, no network."
    return gpu_sentences(json.loads(file.read_text(encoding="utf-8")))


def gpu_sentences(found: dict[str, Any]) -> str:
    """Card, date and commit; how many checks passed and which did not; which goals were missed; what was not seen."""
    sections: dict[str, Any] = found["sections"]
    records = [record for section in sections.values() for record in section["records"]]
    checks, goals, absent = ([each for each in records if each["kind"] == kind] for kind in ("check", "goal", "absent"))
    wrong, missed = ([each["name"] for each in some if not within_limit(each)] for some in (checks, goals))
    unseen = [each["name"] for each in absent]
    unseen += [f"{name} ({section['end']})" for name, section in sections.items() if section["end"] != "done"]
    text = (
        f"**GPUs:** seen on one {found['device']} on {found['machine']['date']} (commit {found['machine']['commit']}, "
        f"torch {found['torch']}): {len(checks) - len(wrong)} of {len(checks)} checks of `make gpu-check` passed, "
        f"{len(goals) - len(missed)} of {len(goals)} goals were reached."
    )
    for what, names in (("Wrong", wrong), ("Goals missed", missed), ("Not seen", unseen)):
        text += f" {what}: {'; '.join(names)}." if names else ""
    return text


def within_limit(record: dict[str, Any]) -> bool:
    return record["value"] is not None and record["value"] <= record["limit"]


TABLES = {
    "what was seen on a GPU": gpu_report,
    "table of estimators": seeds_table,
    "table of one step": one_step_table,
    "table of steps": step_table,
    "table of libraries": peers_table,
    "table of algorithms": algorithms_table,
    "table of generate": generate_table,
    "table of time to reward": rewards_table,
    "short table of time to reward": short_rewards_table,
    "table of tried settings": tuning_table,
    "table of episodes": episodes_table,
    "table of growth": scaling_table,
    "table of imports": imports_table,
    "table of settings": options_table,
}
