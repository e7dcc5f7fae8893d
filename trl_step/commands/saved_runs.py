"""`trl_step doctor`: reading the statistics that a run has left on disk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from trl_step.extras import doctor

EVENTS = "events.out.tfevents*"


def examine(path: Path) -> int:
    """Print the findings of every run at `path`; the exit status is 1 where something is wrong.

    Raises:
        SystemExit: there is nothing to read, or it cannot be read.
    """
    try:
        runs = list(saved_runs(path))
    except (ValueError, ImportError) as error:
        raise SystemExit(f"trl_step doctor: {error}") from error
    if not runs:
        raise SystemExit(f"trl_step doctor: {path} holds neither *.jsonl nor {EVENTS}")
    for source, steps in runs:
        print(f"{source}: {len(steps)} steps\n{doctor.report(steps)}")
    return int(any(doctor.diagnose(steps) for _, steps in runs))


def saved_runs(path: Path) -> Iterator[tuple[Path, list[dict[str, float]]]]:
    """Where each run lies, and its scalars, a dictionary per step.

    Raises:
        ValueError: a line is no JSON object.
        ImportError: a tensorboard log, and no tensorboard.
    """
    if path.is_dir():
        for file in sorted(path.rglob("*.jsonl")):
            yield file, read_json_lines(file)
        for folder in sorted({file.parent for file in path.rglob(EVENTS)}):
            yield from _logged(folder)
    elif path.match(EVENTS):
        yield from _logged(path)
    elif path.is_file():
        yield path, read_json_lines(path)


def read_json_lines(file: Path) -> list[dict[str, float]]:
    """One JSON object per line: what `step` returned, of which numbers are kept."""
    steps = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            stats = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number} is no JSON: {error}") from error
        if not isinstance(stats, dict):
            raise ValueError(
                f"{file}:{number} is a {type(stats).__name__}, where the statistics of a step are an object"
            )
        steps.append({key: float(value) for key, value in stats.items() if isinstance(value, (int, float))})
    return steps


def _logged(path: Path) -> Iterator[tuple[Path, list[dict[str, float]]]]:
    """A log with scalars; the one with the hyperparameters, which tensorboard puts beside it, has none."""
    steps = read_tensorboard(path)
    if any("objective/kl" in stats for stats in steps):
        yield path, steps


def read_tensorboard(path: Path) -> list[dict[str, float]]:
    """The scalars of an event file, or of all event files of a folder."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ImportError("reading a tensorboard log needs the package tensorboard: pip install tensorboard") from error
    log = EventAccumulator(str(path), size_guidance={"scalars": 0})  # 0: all of them
    log.Reload()
    steps: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for key in log.Tags()["scalars"]:
        for event in log.Scalars(key):
            steps[event.step][key] = event.value
    return [steps[step] for step in sorted(steps)]
