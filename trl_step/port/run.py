"""Runs an old script unchanged."""

from __future__ import annotations

import os
import runpy
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl_step.port.aliases import trl_is_trl_step
from trl_step.port.edits import read_source
from trl_step.port.notebooks import Notebook, is_notebook
from trl_step.port.releases import origin_of
from trl_step.port.rewrite import is_of_train_api


def run_script(script: str, arguments: Sequence[str] = (), release: str | None = None) -> None:
    """Run `script` like `python script arguments...`, with `trl` and the old keywords supported.

    Each translation is reported on stderr in one line. `release` is that of TRL which the script was written for; None
    looks for a pin, see `releases.origin_of`.

    Raises:
        FileNotFoundError: there is no such file.
        SyntaxError: it, or a cell of a notebook, is not valid in the running Python version.
    """
    from trl_step.port.patches import translated  # with torch and transformers, which --check does not need

    if not Path(script).is_file():
        raise FileNotFoundError(f"there is no script {script}")
    text = read_source(Path(script))[0].decode()
    notebook = Notebook(text) if is_notebook(Path(script)) else None
    for place, why in notebook.broken if notebook is not None else ():
        raise SyntaxError(f"{script}:{place}: {why}")
    origin = origin_of(Path(script), text if notebook is None else notebook.text, release)
    means_train = is_of_train_api((text if notebook is None else notebook.script).encode(), origin)
    with trl_is_trl_step(), translated(report, origin, means_train), command_line(script, arguments):
        if notebook is None:
            runpy.run_path(script, run_name="__main__")
        else:
            run_cells(script, notebook)


def run_cells(name: str, notebook: Notebook) -> None:
    """Run the code cells of a notebook as one script; lines that only IPython understands are reported and left out."""
    for place, line in notebook.set_aside:
        report(f"{name}:{place}: left out: {line.strip()}")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, f"{Path(name).name}.py")
        script.write_text(notebook.script, encoding="utf-8")
        runpy.run_path(str(script), {"display": print}, run_name="__main__")


def report(line: str) -> None:
    """Print a notice of the porting kit; only the first of several processes does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"trl_step.port: {line}", file=sys.stderr, flush=True)


@contextmanager
def command_line(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """Inside, `sys.argv` and `sys.path[0]` are as the interpreter sets them for a script."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
