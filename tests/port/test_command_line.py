"""`trl_step port --check` and `--write` on folders, and the last line about each file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.markdown_pages import ROOT
from trl_step.port.command_line import main, summary


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((0, 0, False), "runs as it is, nothing to change"),
        ((1, 0, False), "1 change"),
        ((3, 1, False), "3 changes, 1 thing by hand"),
        ((0, 2, True), "2 things by hand"),
        ((2, 2, True), "2 changes written, 2 things by hand"),
    ],
)
def test_summary(counts: tuple[int, int, bool], line: str) -> None:
    assert summary(*counts) == line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files to look at, and three to pass by."""
    scripts = {
        "ready.py": "import os\n",
        "deep/er/old.py": "import trl\n",
        "gone.py": "import trl\nfrom transformers import AutoModelWithLMHead\n",
        "python2.py": "print 'x'\n",
        "notes.txt": "import trl\n",
        ".hidden/old.py": "import trl\n",
        "env/lib/site-packages/old.py": "import trl\n",
    }
    for name, text in scripts.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cell = {"cell_type": "code", "source": "import trl", "metadata": {}, "outputs": [], "execution_count": None}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "project" / "book.ipynb").write_text(json.dumps(notebook))
    (tmp_path / "project" / "broken.ipynb").write_text("{}")
    return tmp_path / "project"


def last_lines(text: str, folder: Path) -> dict[str, str]:
    """What the last line about each file says."""
    lines = [line.removeprefix(f"{folder}/").partition(": ") for line in text.splitlines()]
    return {name: said for name, _, said in lines if name.endswith((".py", ".ipynb")) and name[0] != "-"}


def test_check_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["--check", str(folder)]) == 1
    told = capsys.readouterr().out
    assert last_lines(told, folder) == {
        "book.ipynb": "1 change",
        "broken.ipynb": "this is not a notebook of format 4, which is JSON with a list of cells",
        "deep/er/old.py": "1 change",
        "gone.py": "1 change, 1 thing by hand",
        "ready.py": "runs as it is, nothing to change",
    }
    assert f"{folder}/python2.py:1: " in told
    assert told.endswith(f"{folder}: 6 files, of which 1 run as they are, 2 cannot be read\n")
    assert {path: path.read_bytes() for path in before} == before


def test_write_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--write", str(folder)]) == 1
    told = capsys.readouterr().out
    assert last_lines(told, folder)["deep/er/old.py"] == "1 change written"
    assert told.endswith(f"{folder}: 6 files, of which 3 need nothing more, 2 cannot be read\n")
    assert (folder / "deep/er/old.py").read_text() == "import trl_step as trl\n"
    assert "import trl_step as trl" in (folder / "book.ipynb").read_text()
    assert (folder / ".hidden/old.py").read_text() == "import trl\n"
    assert (folder / "env/lib/site-packages/old.py").read_text() == "import trl\n"


def test_folders_and_files_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(folder / "deep"), str(folder / "ready.py")]) == 1
    assert capsys.readouterr().out.endswith("ready.py: runs as it is, nothing to change\n")
    assert main(["--check", str(folder / "ready.py")]) == 0


def test_a_folder_is_not_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(folder)])
    assert f"there is no script {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("-m", "trl_step.port", "--check"), ("-m", "trl_step", "doctor")])
def test_an_output_that_lacks_characters_gets_them_escaped(command: tuple[str, ...], tmp_path: Path) -> None:
    """As on Windows, whose pipes and files are in cp1252."""
    folder = tmp_path / "中文"
    folder.mkdir()
    (folder / "old.py").write_text('import trl\ntrl.PPOConfig(task_name="日本")\n', encoding="utf-8")
    (folder / "run.jsonl").write_text('{"objective/kl": 0.1}\n', encoding="utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command, str(folder)], env=environment, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert "\\u4e2d\\u6587" in done.stdout
