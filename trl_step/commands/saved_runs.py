"""`trl_step doctor`: reads the statistics that a run wrote to disk."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trl_step.extras import doctor

EVENTS = "events.out.tfevents*"
LINES = "*.jsonl"


def examine(path: Path) -> int:
    """Print the findings of every run at `path`; the exit status is 1 if something is wrong, or nothing can be judged.

    Raises:
        SystemExit: there is nothing to read, or it cannot be read.
    """
    if not path.exists():
        raise SystemExit(
            printable(f"trl_step doctor: there is no file or folder {path} (looked for {path.absolute()})")
        )
    try:
        runs = list(saved_runs(path))
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(printable(f"trl_step doctor: {error}")) from error
    if not runs:
        raise SystemExit(printable(f"trl_step doctor: {path} has no statistics, in {LINES} or {EVENTS}"))
    sound = True
    for source, steps in runs:
        findings, missing = doctor.diagnose(steps), doctor.not_judged(steps)
        print(f"{printable(str(source))}: {len(steps)} steps\n{doctor.worded(findings, missing)}")
        sound = sound and not findings and len(missing) < len(doctor.JUDGED_BY)
    return int(not sound)


def printable(text: str) -> str:
    """`text` with control and unprintable characters escaped as in Python: `\\x1b`."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def saved_runs(path: Path) -> Iterator[tuple[Path, list[dict[str, float]]]]:
    """The path of each run, and its scalars, a dictionary per step. In a folder, files without a KL are skipped.

    Raises:
        ValueError: a line is not a JSON object.
        OSError: a file cannot be read.
        ImportError: the run is a tensorboard log, and tensorboard is missing.
    """
    if path.is_dir():
        # not folders, nor pipes, which may never end
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for file in files:
            if file.match(LINES):
                yield from _if_a_run(file, read_json_lines(file))
        for folder in sorted({file.parent for file in files if file.match(EVENTS)}):
            yield from _if_a_run(folder, read_tensorboard(folder))
    elif path.is_file():
        steps = read_tensorboard(path) if path.match(EVENTS) else read_json_lines(path)
        if any(steps):
            yield path, steps


def read_json_lines(file: Path) -> list[dict[str, float]]:
    """One JSON object per line, as `step` returned it, or one list of them; only numbers are kept."""
    steps = []
    for place, stats in _json_values(file):
        if not isinstance(stats, dict):
            raise ValueError(f"{place} is a {type(stats).__name__}; the statistics of a step are an object")
        steps.append({key: float(value) for key, value in stats.items() if isinstance(value, (bool, float))})
    return steps


def _json_values(file: Path) -> Iterator[tuple[str, Any]]:
    """Each value of the file, and where it stands."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="\n") as lines:
        if (start := lines.read(1)) == "[":
            for number, value in enumerate(_read_json(start + lines.read(), str(file)), start=1):
                yield f"{file}: entry {number}", value
            return
        for number, line in enumerate(lines, start=1):
            whole = start + line if number == 1 else line
            if whole.strip():
                yield f"{file}:{number}", _read_json(whole, f"{file}:{number}")


def _read_json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_int=float)  # an int may be too large for a float
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error


def _if_a_run(path: Path, steps: list[dict[str, float]]) -> Iterator[tuple[Path, list[dict[str, float]]]]:
    """The run, if it is one: a folder may also have data, and tensorboard's log of the hyperparameters."""
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
