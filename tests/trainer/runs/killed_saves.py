"""Saves that are killed at random moments: `main(FOLDER)` writes to a JSON file what was found after each.

The trainer is built once. Each save runs in a process that was forked from this one, in which every weight and every
number of the optimizer's state is the number of the step, so that a mixture of two states would show.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import time
from pathlib import Path
from typing import Any

import torch

from tests.tiny import batch, trainer
from trl_step.trainer.runs import folder as state_folder

OUTCOMES = "outcomes.json"
KILLS = 20
MOST_LATE = 50
"""kills in a row that may come after the end of the save"""


def become(ours: Any, steps: int) -> None:
    """A run that has made `steps` steps."""
    ours.steps_done = steps
    ours._autosave.forget()
    with torch.no_grad():
        for tensor in numbers_of(ours):
            tensor.fill_(steps)


def numbers_of(ours: Any) -> list[torch.Tensor]:
    moments = [value for state in ours.optimizer.state.values() for value in state.values()]
    return [*ours.model.parameters(), *moments]


def save_in_a_fork(ours: Any, kept: str, steps: int, kill_after: float | None) -> float | None:
    """Save as step `steps`; kill that if it takes longer than `kill_after` seconds.

    Returns:
        the seconds that it took, or None if it was killed.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        become(ours, steps)
        os.write(write, b"begin")
        if kept == "in one folder":
            ours.save_state(Path(ours.config.save_dir) / "step-00000000")
        else:
            ours._autosave._save()
        os.write(write, b" end")
        os._exit(0)
    os.close(write)
    seen, began = os.read(read, 5), time.perf_counter()
    if not select.select([read], [], [], kill_after)[0]:
        os.kill(child, signal.SIGKILL)
    while piece := os.read(read, 5):
        seen += piece
    seconds = time.perf_counter() - began
    os.close(read)
    os.waitpid(child, 0)
    return seconds if seen.endswith(b"end") else None


def play(ours: Any, kept: str, moments: random.Random) -> dict[str, Any]:
    """Kill saves in a row until ten were cut off; each goes on from what the one before left."""
    seen: dict[str, Any] = {"completed": 0, "cut off": 0, "wrong": []}
    durations = [save_in_a_fork(ours, kept, steps, None) or 0.0 for steps in range(1, 6)]
    steps = 5
    while seen["cut off"] < KILLS // 2 and seen["completed"] < MOST_LATE:
        completed = save_in_a_fork(ours, kept, steps + 1, moments.uniform(0, sorted(durations)[2])) is not None
        seen["completed" if completed else "cut off"] += 1
        become(ours, 0)
        found = ours.load_state("latest")
        if found not in ((steps + 1,) if completed else (steps, steps + 1)):
            seen["wrong"].append(f"step {found} in place of {steps} or the next")
        if not all(bool((tensor == found).all()) for tensor in numbers_of(ours)):
            seen["wrong"].append(f"step {found} is a mixture")
        steps = found
        if completed:  # the kill came late: other work on the machine comes and goes, so measure anew
            steps += 1
            durations = [*durations[1:], save_in_a_fork(ours, kept, steps, None) or 0.0]
    data = list(Path(ours.config.save_dir).glob(f"*/{state_folder.DATA}*"))
    return {**seen, "left behind": len(data)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    ours = trainer("gpt2", save_every=1000, keep_last=2, save_dir=str(folder))
    ours.step(*batch())  # so that the optimizer has a state
    outcomes = {}
    for seed, kept in enumerate(("in one folder", "the last two")):
        ours.config.save_dir = str(folder / kept)
        outcomes[kept] = play(ours, kept, random.Random(seed))
    (folder / OUTCOMES).write_text(json.dumps(outcomes))
