"""Checkpoints of a run: `output_dir/checkpoint-<step>`, with the policy, the state of the run and its log."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from trl_step.trainer.runs import folder as state_folder

PREFIX = "checkpoint-"
STATE = "state"
"""The folder in a checkpoint that `StepTrainer.save_state` writes."""
LOG = "trainer_state.json"
"""`transformers.TrainerState` as a file."""


def folder_of(output_dir: str, step: int) -> Path:
    """Where the checkpoint after `step` belongs."""
    return Path(output_dir) / f"{PREFIX}{step}"


def all_checkpoints(output_dir: str) -> list[Path]:
    """Those in `output_dir`, whole or not, by their step."""
    numbered = [(re.fullmatch(rf"{PREFIX}(\d+)", path.name), path) for path in Path(output_dir).glob(f"{PREFIX}*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def chosen(resume_from: str | bool | None, output_dir: str) -> Path | None:
    """The checkpoint that `resume_from_checkpoint` names; True: the newest whole one in `output_dir`.

    Raises:
        ValueError: there is none, or the one that is named is not whole.
    """
    if not resume_from:
        return None
    if resume_from is not True:
        path = Path(resume_from)
        state_folder.checked(path / STATE)
        return path
    for path in reversed(all_checkpoints(output_dir)):
        if is_whole(path):
            return path
    raise ValueError(f"resume_from_checkpoint=True, but there is no whole checkpoint in {output_dir}")


def is_whole(path: Path) -> bool:
    """Whether a run can go on from this checkpoint."""
    try:
        state_folder.checked(path / STATE)
    except (ValueError, FileNotFoundError):
        return False
    return (path / LOG).is_file()


def prune(output_dir: str, most: int | None) -> None:
    """Remove the oldest checkpoints but `most`; None keeps all."""
    if most is None:
        return
    found = all_checkpoints(output_dir)
    for path in found[: max(len(found) - max(most, 1), 0)]:
        shutil.rmtree(path, ignore_errors=True)
