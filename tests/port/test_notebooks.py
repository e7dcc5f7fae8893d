"""Notebooks: cells are ported like a script, everything else in the file stays as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trl_step.port.command_line import main
from trl_step.port.notebooks import Notebook

CELLS: list[tuple[str, str]] = [
    ("markdown", "# Old\nimport trl"),
    ("code", "%pip install trl==0.7.4\n!nvidia-smi \\\n  -L\nimport trl\nfrom trl import PPOConfig"),
    ("code", "%%bash\nimport trl (no Python)\nif"),
    ("code", "%%time\nconfig = PPOConfig(batch_size=8)\nfiles = !ls\nif True:\n    %matplotlib inline\n"),
    ("code", 'kwargs = {"top_k": 0.0}\ntext = """\n!kept\n%d"""\nx = (5\n% 3)'),
    ("code", "model.generate?\nmodel.generate(**kwargs)"),
    ("code", ""),
]
PORTED = {
    1: "%pip install trl==0.7.4\n!nvidia-smi \\\n  -L\nimport trl_step as trl\nfrom trl_step import PPOConfig",
    3: "%%time\nconfig = PPOConfig(batch_size=8, mini_batch_size=1, learning_rate=1e-05)\nfiles = !ls\nif True:\n"
    "    %matplotlib inline\n",
    4: 'kwargs = {"top_k": 0}\ntext = """\n!kept\n%d"""\nx = (5\n% 3)',
}


def write(path: Path, cells: Any = CELLS, indent: int | None = 1, ascii_only: bool = False) -> dict[str, Any]:
    content = {
        "cells": [
            {"cell_type": kind, "metadata": {}, "source": source.splitlines(keepends=True) if number % 2 else source}
            | ({"outputs": [{"output_type": "stream", "text": "é import trl"}]} if kind == "code" else {})
            for number, (kind, source) in enumerate(cells)
        ],
        "metadata": {"language_info": {"name": "python"}, "own": "é"},
        "nbformat": 4,
    }
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only) + "\n", encoding="utf-8")
    return content


@pytest.mark.parametrize(("indent", "ascii_only"), [(1, False), (2, True), (None, False)])
def test_cells_are_ported_and_all_else_stays(
    tmp_path: Path, indent: int | None, ascii_only: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.ipynb"
    content = write(path, indent=indent, ascii_only=ascii_only)
    before = path.read_bytes()
    assert main(["--check", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"{path}:cell 2:4: the package is trl_step" in told
    assert f"{path}:cell 4:2: mini_batch_size=1, learning_rate=1e-05 added (the defaults of TRL 0.7.4 (old" in told
    assert f'{path}:cell 5:1: "top_k": 0.0 -> "top_k": 0' in told
    assert path.read_bytes() == before
    assert main(["--write", str(path)]) == 0
    for number, source in PORTED.items():
        as_list = isinstance(content["cells"][number]["source"], list)
        content["cells"][number]["source"] = source.splitlines(keepends=True) if as_list else source
    assert path.read_text("utf-8") == json.dumps(content, indent=indent, ensure_ascii=ascii_only) + "\n"
    assert main(["--check", str(path)]) == 0
    assert "nothing to change" in capsys.readouterr().out


def test_a_notebook_runs_as_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.ipynb"
    cells = [
        ("code", "!pip install trl==0.7.4\nfrom trl import PPOConfig"),
        ("code", "import sys\ndisplay(PPOConfig().batch_size, sys.argv[1:], __name__)"),
    ]
    write(path, cells)
    assert main([str(path), "--own"]) == 0
    said = capsys.readouterr()
    assert said.out == "256 ['--own'] __main__\n"
    assert f"{path}:cell 1:1: left out: !pip install trl==0.7.4" in said.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a notebook of format 4"),
        ("import trl", "not a notebook of format 4"),
        ('{"cells": [], "metadata": {"language_info": {"name": "R"}}}', "language is R, not python"),
        ('{"cells": [], "metadata": {"kernelspec": {"language": "R"}}}', "language is R, not python"),
        ('{"worksheets": [{"cells": []}], "nbformat": 3}', "format 3: jupyter nbconvert --to notebook"),
        ('{"cells": {"a": 1}}', "not a notebook of format 4"),
        ('{"cells": ["a"]}', "not a notebook of format 4"),
        ("[]", "not a notebook of format 4"),
        ("", "not a notebook of format 4"),
    ],
)
def test_what_is_no_python_notebook_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "old.ipynb"
    path.write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["--check", str(path)])


def test_a_cell_that_is_not_python_is_named_and_the_others_are_ported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.ipynb"
    content = write(path, [("code", "import trl"), ("code", "y = 2\nprint 'z'"), ("code", "pip install trl\nx = 1")])
    assert main(["--write", str(path)]) == 1
    told = capsys.readouterr().out
    assert f"{path}:cell 2:2: not Python, left as it is: Missing parentheses" in told
    assert "1 change written, 1 thing by hand" in told
    content["cells"][0]["source"] = "import trl_step as trl"
    assert json.loads(path.read_text("utf-8")) == content
    with pytest.raises(SyntaxError, match=r"old\.ipynb:cell 2:2: Missing parentheses"):
        main([str(path)])


def test_a_cell_of_another_program_that_imports_trl_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.ipynb"
    write(path, [("code", "%%writefile train.py\nfrom trl import PPOConfig"), ("code", "%%bash\necho trl")])
    before = path.read_bytes()
    assert main(["--write", str(path)]) == 1
    assert f"{path}:cell 1:1: %%writefile: the code in this cell imports trl: to be done" in capsys.readouterr().out
    assert path.read_bytes() == before


MAGICS = ["d['k'] = !ls", "a.b = %env HOME", "/f 1 2", ",f a b", "pip install trl==0.7.4", "cd x", "%%memit\nx = 1"]


@pytest.mark.parametrize("magic", MAGICS)
def test_what_ipython_reads_stays(tmp_path: Path, magic: str) -> None:
    path = tmp_path / "old.ipynb"
    write(path, [("code", f"{magic}\nimport trl\n")])
    assert main(["--write", str(path)]) == 0
    assert json.loads(path.read_text("utf-8"))["cells"][0]["source"] == f"{magic}\nimport trl_step as trl\n"


ODD = (
    '{"metadata":{"kernelspec": {"language": "python"}, "metadata": {}},\t"nbformat":4,\r\n'
    ' "cells":[ {"cell_type":"code", "outputs":[{"x": [1E5, 0.10, 0.00001, "\\/ \\u00e9 é"]}],\r\n'
    '\t"source" : [ "import trl\\n",  "x = \'\\u00e9\'\\n",  "# trl_step.port: cell 7" ]},\r\n'
    ' {"source":["import trl"],"cell_type":"code"}, {"cell_type":"raw"}, {"cell_type":"code","source":[]} ]}'
)


def test_every_byte_outside_of_the_changed_cells_stays(tmp_path: Path) -> None:
    path = tmp_path / "old.ipynb"
    path.write_bytes(ODD.encode())
    assert main(["--write", str(path)]) == 0
    assert path.read_bytes().decode() == ODD.replace("import trl", "import trl_step as trl")


def test_an_unchanged_script_gives_the_notebook_back(tmp_path: Path) -> None:
    path = tmp_path / "old.ipynb"
    write(path)
    text = path.read_text("utf-8")
    notebook = Notebook(text)
    assert notebook.with_script(notebook.script) == text
