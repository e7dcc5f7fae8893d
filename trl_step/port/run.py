"""Runs an old script unchanged."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl_step.port.aliases import trl_is_trl_step
from trl_step.port.edits import read_source
from trl_step.port.patches import translated
from trl_step.port.releases import origin_of


def run_script(script: str, arguments: Sequence[str] = (), release: str | None = None) -> None:
    """Run `script` like `python script arguments...`, with `trl` and the old keywords supported.

    Each translation is reported on stderr in one line. `release` is that of TRL which the script was written for; None
    looks for a pin, see `releases.origin_of`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f"there is no script {script}")
    origin = origin_of(Path(script), read_source(Path(script))[0].decode(), release)
    with trl_is_trl_step(), translated(report, origin), command_line(script, arguments):
        runpy.run_path(script, run_name="__main__")


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
