"""A folder holds a complete state or none, and what is wrong with it is said with its name."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs.folder import checked, folder_of_step, newest, prune, write

ALONE: Any = Processes(
    SimpleNamespace(num_processes=1, process_index=0, is_main_process=True, device=torch.device("cpu"))
)


def save(folder: Path, text: str) -> None:
    def files(data: Path) -> list[str]:
        (data / "a.json").write_text(text)
        (data / "b.json").write_text("b" * 100)
        return ["a.json", "b.json"]

    write(folder, ALONE, files)


def text_of(folder: Path) -> str:
    return (checked(folder) / "a.json").read_text()


def test_a_new_state_replaces_the_old_one_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    for text in ("one", "two", "three"):
        save(tmp_path / "deep" / "state", text)
        assert text_of(tmp_path / "deep" / "state") == text
    assert len(list((tmp_path / "deep" / "state").iterdir())) == 2


@pytest.mark.parametrize("where", ["files", "fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_state(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "old")

    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    if where != "files":
        monkeypatch.setattr(state_folder.os, where, fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path, ALONE, fail) if where == "files" else save(tmp_path, "new")
    assert text_of(tmp_path) == "old"


def cut(data: Path) -> None:
    (data / "b.json").write_text("b" * 99)


def flip(data: Path) -> None:
    (data / "b.json").write_text("b" * 99 + "c")


def remove(data: Path) -> None:
    (data / "a.json").unlink()


def no_manifest(data: Path) -> None:
    (data.parent / "manifest.json").unlink()


def half_manifest(data: Path) -> None:
    path = data.parent / "manifest.json"
    path.write_text(path.read_text()[:-20])


def of_tomorrow(data: Path) -> None:
    path = data.parent / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))


DAMAGES = {
    cut: "is damaged: b.json has 99 bytes, not 100",
    flip: "is damaged: b.json has changed since it was saved",
    remove: "is damaged: a.json is missing",
    no_manifest: "is incomplete: manifest.json is missing, so saving it was interrupted",
    half_manifest: "is damaged: manifest.json cannot be read",
    of_tomorrow: "has the format 2, and this version of trl_step reads 1",
}


def test_a_folder_without_a_state_is_named_with_those_inside(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=f"there is no state in {tmp_path / 'model'}; save_state writes one"):
        checked(tmp_path / "model")
    save(tmp_path / "step-1", "old")
    with pytest.raises(ValueError, match=f"there is no state in {tmp_path}; there is one in {tmp_path / 'step-1'}"):
        checked(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_with_the_folder_and_what_to_do(damage: Callable, tmp_path: Path) -> None:
    save(tmp_path / "mine", "old")
    damage(checked(tmp_path / "mine"))
    with pytest.raises(ValueError, match=f"the state in {tmp_path / 'mine'} {DAMAGES[damage]}.*load") as caught:
        checked(tmp_path / "mine")
    assert "load" in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder {tmp_path / 'none'}"):
        checked(tmp_path / "none")


def test_the_newest_whole_state_is_found(tmp_path: Path) -> None:
    assert newest(tmp_path / "none") is None
    for steps in (5, 20, 10):  # the run went back to 5 and made 10 anew
        save(folder_of_step(tmp_path, steps), str(steps))
    assert newest(tmp_path) == checked(folder_of_step(tmp_path, 10))
    flip(checked(folder_of_step(tmp_path, 10)))
    no_manifest(checked(folder_of_step(tmp_path, 5)))
    with pytest.warns(UserWarning, match="passed over") as caught:
        assert newest(tmp_path) == checked(folder_of_step(tmp_path, 20))
    assert [str(warning.message).partition(" is ")[0][-2:] for warning in caught] == ["05", "10"]
    flip(checked(folder_of_step(tmp_path, 20)))
    with (
        pytest.warns(UserWarning, match="passed"),
        pytest.raises(ValueError, match=f"all states in {tmp_path} are damaged"),
    ):
        newest(tmp_path)


def test_nothing_but_interrupted_saves_is_nothing(tmp_path: Path) -> None:
    save(folder_of_step(tmp_path, 1), "1")
    no_manifest(checked(folder_of_step(tmp_path, 1)))
    with pytest.warns(UserWarning, match="incomplete: it is passed over"):
        assert newest(tmp_path) is None


def test_old_states_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for steps in range(1, 6):
        save(folder_of_step(tmp_path, steps), str(steps))
    no_manifest(checked(folder_of_step(tmp_path, 4)))
    for own in ("step-12", "best", "step-00000007"):
        (tmp_path / own).mkdir()
        (tmp_path / own / "model.safetensors").touch()
    prune(tmp_path, 2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["best", "step-00000003", "step-00000005", "step-00000007", "step-12"]
    assert text_of(folder_of_step(tmp_path, 3)) == "3"


def test_a_state_whose_removal_is_interrupted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (1, 2):
        save(folder_of_step(tmp_path, steps), str(steps))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    prune(tmp_path, 1)
    with pytest.raises(ValueError, match="incomplete"):
        checked(folder_of_step(tmp_path, 1))


def test_what_is_synced_is_open_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to sync a file that is open for reading only; a folder cannot be opened there at all."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    sync = os.fsync

    def checked_sync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", checked_sync)
    save(tmp_path / "state", "text")
    assert modes
    assert os.O_RDONLY not in modes
