"""The notebooks run from top to bottom, and what is committed of them is small and in order."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest

from tests.markdown_pages import ROOT

nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST = 60_000
"""Bytes of a notebook with its outputs."""


def read(name: str) -> Any:
    return nbformat.read(FOLDER / name, as_version=4)


def run(name: str, folder: Path, **parameters: Any) -> Any:
    """The notebook after a run in an empty folder, with other values in place of those of its cell "parameters"."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = read(name)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert all(f"{key} = " in cell.source for key in parameters)
    cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
    resources = {"metadata": {"path": str(folder)}}
    return nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).execute()


def outputs(notebook: Any, kind: str) -> list[str]:
    """What the cells show of a MIME type; "text" is what they print."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return [output.text for output in found if output.output_type == "stream" and output.name == "stdout"]
    return [output.data[kind] for output in found if kind in output.get("data", {})]


def rise(notebook: Any) -> tuple[float, float]:
    """The two numbers of the last line that the game prints."""
    before, after = re.findall(r"(\d\.\d+) -> (\d\.\d+)", "".join(outputs(notebook, "text")))[-1]
    return float(before), float(after)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_committed_outputs_are_small_and_in_order(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    assert (FOLDER / name).stat().st_size < LARGEST
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    (curve,) = outputs(notebook, "image/png")
    assert base64.b64decode(curve).startswith(b"\x89PNG")
    shown = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in shown} <= {"display_data", "execute_result", "stream"}
    assert all(output.name == "stdout" for output in shown if output.output_type == "stream")
    assert not re.search(r"/(home|root|tmp|Users|work)/", (FOLDER / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_linked(name: str) -> None:
    for page in ("docs/README.md", "examples/README.md"):
        assert f"notebooks/{name}" in (ROOT / page).read_text(encoding="utf-8")


def test_the_committed_game_was_learned() -> None:
    before, after = rise(read("own_game.ipynb"))
    assert before < 0.3
    assert after > 0.8


@pytest.mark.slow
def test_the_game_runs(tmp_path: Path) -> None:
    """Slow: a fresh interpreter imports everything."""
    notebook = run("own_game.ipynb", tmp_path, STEPS=2, GAMES=16)
    assert outputs(notebook, "text/plain")[0] == "[]"  # of check_environment
    assert len(outputs(notebook, "image/png")) == 1
    assert "".join(outputs(notebook, "text")).count("|") == 2 * 6  # rows of two islands, before | after
    assert all(0 <= share <= 1 for share in rise(notebook))


@pytest.mark.slow
def test_the_reviews_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: a fresh interpreter imports everything."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    tiny = {"train_reviews": 40, "test_reviews": 8, "vocabulary": 400, "layers": 1, "width": 16,
            "model_updates": 2, "classifier_updates": 2, "cache_dir": str(tmp_path)}  # fmt: skip
    notebook = run("sentiment.ipynb", tmp_path, STEPS=2, ASSETS=tiny)
    assert len(outputs(notebook, "image/png")) == 1
    (table,) = outputs(notebook, "text/markdown")
    assert len(re.findall(r"^\| .+ \| \d\.\d\d \| .+ \| \d\.\d\d \|$", table, re.MULTILINE)) == 6
