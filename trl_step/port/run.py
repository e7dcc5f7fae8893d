"""Running an old script as it stands."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl_step.port.aliases import trl_is_trl_step
from trl_step.port.patches import translated


def run_script(script: str, arguments: Sequence[str] = ()) -> None:
    """Run `script` as `python script arguments...` would, with `trl` and the old keywords understood.

    What was translated is told on stderr, one line each.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not Path(script).is_file():
        raise FileNotFoundError(f"there is no script {script}")
    with trl_is_trl_step(), translated(tell), command_line(script, arguments):
        runpy.run_path(script, run_name="__main__")


def tell(line: str) -> None:
    """Print a notice of the porting kit; of several processes the first one does."""
    if os.environ.get("RANK", "0") == "0":
        print(f"trl_step.port: {line}", file=sys.stderr, flush=True)


@contextmanager
def command_line(script: str, arguments: Sequence[str]) -> Iterator[None]:
    """Inside, `sys.argv` and the first entry of `sys.path` are as the interpreter sets them for a script."""
    argv, path = sys.argv[:], sys.path[:]
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
