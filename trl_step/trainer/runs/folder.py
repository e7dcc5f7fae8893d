"""A folder that holds one complete state or none: written beside, checked by size and checksum, switched at once.

    folder/manifest.json    which files belong to the state, their sizes and checksums
    folder/data-1/          the files

The manifest is renamed into place when everything else is on the disk, so a folder without one is incomplete, and
writing into the same folder again replaces the old state in a single moment. Several processes write one state; they
need to see the same file system.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trl_step.models.notices import warn_user
from trl_step.trainer.processes.processes import Processes

FORMAT = 1
MANIFEST = "manifest.json"
DATA = "data-"
STEP, DIGITS = "step-", 8
REMEDY = 'load another state, for example the newest complete one with load_state("latest")'

# --- writing -------------------------------------------------------------------------------------------------


def write(folder: Path, processes: Processes, write_files: Callable[[Path], list[str]]) -> None:
    """Write a state into `folder`, in place of the one that is there.

    Args:
        folder: made if need be
        processes: all that call this
        write_files: writes this process's files into the folder that it is given, and returns their names

    Raises:
        Exception: what `write_files` raised on any process, on all of them; the old state is still there.
    """
    main = processes.is_main
    data = folder / processes.together(lambda: _new_data_folder(folder) if main else "")[0]

    def own() -> dict[str, dict[str, Any]]:
        return {file: _settled(data / file) for file in write_files(data)}

    try:
        files = processes.together(own)
    except BaseException:
        if main:
            shutil.rmtree(data, ignore_errors=True)
        raise
    processes.together(lambda: _switch(folder, data, files) if main else None)


def _new_data_folder(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    taken = [int(path.name.removeprefix(DATA)) for path in folder.glob(f"{DATA}[0-9]*")]
    name = f"{DATA}{max(taken, default=0) + 1}"
    (folder / name).mkdir()
    return name


def _settled(path: Path) -> dict[str, Any]:
    """Size and checksum of a file that is on the disk when this returns."""
    with open(path, "rb+") as file:  # Windows syncs only what is open for writing
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _checksum(path)}


def _switch(folder: Path, data: Path, files: list[dict[str, dict[str, Any]]]) -> None:
    """Make `data` the state of `folder`, and remove what was it before."""
    manifest = {
        "format": FORMAT,
        "data": data.name,
        "written": time.time(),
        "files": {name: facts for own in files for name, facts in own.items()},
    }
    beside = folder / f"{MANIFEST}.new"
    beside.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _settled(beside)
    _sync_folder(data)
    os.replace(beside, folder / MANIFEST)
    _sync_folder(folder)
    _sync_folder(folder.parent)
    for path in folder.glob(f"{DATA}[0-9]*"):
        if path != data:
            shutil.rmtree(path, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # not every system lets a folder be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


# --- reading -------------------------------------------------------------------------------------------------


def checked(folder: Path) -> Path:
    """Where the files of the state in `folder` are, every one compared with its checksum.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: the state is incomplete or damaged; the message names the folder, the file and what to do.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} to load a state from")
    manifest = _manifest(folder)
    data = folder / str(manifest["data"])
    for name, facts in manifest["files"].items():
        path = data / name
        if not path.is_file():
            raise ValueError(f"the state in {folder} is damaged: {path.name} is missing; {REMEDY}")
        if path.stat().st_size != facts["bytes"]:
            raise ValueError(
                f"the state in {folder} is damaged: {path.name} has {path.stat().st_size} bytes, not "
                f"{facts['bytes']}; {REMEDY}"
            )
        if _checksum(path) != facts["sha256"]:
            raise ValueError(f"the state in {folder} is damaged: {path.name} has changed since it was saved; {REMEDY}")
    return data


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file() and not any(folder.glob(f"{DATA}[0-9]*")):
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{MANIFEST}"))
        hint = f"; there is one in {', '.join(inside[-3:])}" if inside else "; save_state writes one"
        raise ValueError(f"there is no state in {folder}{hint}")
    if not path.is_file():
        raise ValueError(
            f"the state in {folder} is incomplete: {MANIFEST} is missing, so saving it was interrupted; {REMEDY}"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        complete = isinstance(manifest["files"], dict) and isinstance(manifest["written"], float)
        complete = complete and isinstance(manifest["data"], str)
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise ValueError(f"the state in {folder} is damaged: {MANIFEST} cannot be read; {REMEDY}")
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the state in {folder} has the format {manifest.get('format')}, and this version of trl_step reads "
            f"{FORMAT}: load it with the version that saved it"
        )
    return manifest


# --- the states of a run -------------------------------------------------------------------------------------


def folder_of_step(save_dir: Path, steps: int) -> Path:
    """Where the automatic state after step number `steps` belongs."""
    return save_dir / f"{STEP}{steps:0{DIGITS}d}"


def newest(save_dir: Path) -> Path | None:
    """The files, see `checked`, of the state in `save_dir` that was written last and is whole.

    None where no state was ever completed. One warning for each that is passed over, as it is incomplete or damaged.

    Raises:
        ValueError: states were completed, and all of them are damaged.
    """
    complete = complete_states(save_dir)
    passed = [f"the state in {folder} is incomplete" for folder in _folders(save_dir) if folder not in complete]
    found = None
    for folder in reversed(complete):
        try:
            found = checked(folder)
            break
        except ValueError as error:
            passed.append(str(error).removesuffix(f"; {REMEDY}"))
    for reason in passed:
        warn_user(f"{reason}: it is passed over")
    if complete and found is None:
        raise ValueError(f"all states in {save_dir} are damaged; load another one, or begin anew in another folder")
    return found


def prune(save_dir: Path, keep_last: int) -> None:
    """Remove all states in `save_dir` but the `keep_last` written last, and what interrupted saves left there."""
    kept = complete_states(save_dir)[-keep_last:]
    for folder in _folders(save_dir):
        if folder not in kept:
            (folder / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed state is no state
            shutil.rmtree(folder, ignore_errors=True)


def _folders(save_dir: Path) -> list[Path]:
    """The folders of `folder_of_step`, with nothing in them but what `write` puts there."""
    return [
        folder
        for folder in sorted(save_dir.glob(STEP + "[0-9]" * DIGITS))
        if all(path.name.startswith((DATA, MANIFEST)) for path in folder.iterdir())
    ]


def complete_states(save_dir: Path) -> list[Path]:
    """States with a manifest, in the order in which they were written."""
    found = []
    for folder in _folders(save_dir):
        with suppress(ValueError):
            found.append((float(_manifest(folder)["written"]), folder))
    return [folder for _, folder in sorted(found)]
