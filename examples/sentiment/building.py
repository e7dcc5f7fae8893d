"""Builds a folder once, in a temporary folder that is renamed as a whole; and ends a script that Ctrl-C stops."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "building-"
LONGEST_BUILD = 24 * 3600
"""Seconds after which a build that cannot be asked (on another machine) counts as killed."""


def build_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, filled by `write(temporary folder)` if it does not exist yet.

    An interrupted build leaves nothing half done, what a killed one left is removed by the next, and of two builds at
    the same time one wins.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_killed_builds(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{_machine()}-{os.getpid()}-", dir=folder.parent))
    try:
        write(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():  # ignore it if another process was first
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def remove_killed_builds(cache: Path) -> None:
    """Remove the temporary folders in `cache` of builds that run no more."""
    for path in cache.glob(f"{PREFIX}*"):
        named = re.fullmatch(rf"{PREFIX}(.+)-(\d+)-[^-]+", path.name)
        here = named is not None and named[1] == _machine() and os.name == "posix"
        if named is not None and here:
            killed = not _runs(int(named[2]))
        else:
            killed = time.time() - path.stat().st_mtime > LONGEST_BUILD
        if killed:
            shutil.rmtree(path, ignore_errors=True)


def _machine() -> str:
    return re.sub(r"\W", "_", platform.node()) or "unknown"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 asks and sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@contextmanager
def one_line_if_interrupted(can_resume: bool = False) -> Iterator[None]:
    """Inside, Ctrl-C ends the script with one line and exit status 130, and no traceback.

    Args:
        can_resume: the script has the options `--save_every` and `--resume_from`.
    """
    try:
        yield
    except KeyboardInterrupt:
        saves = any(re.match("--save[_-]every", word) for word in sys.argv)
        how = "with --save_every=10 a run saves itself, and --resume_from=latest resumes it" if can_resume else ""
        if can_resume and saves:
            how = "the same command with --resume_from=latest resumes the run where it was last saved"
        print(f"interrupted{how and ': '}{how}", file=sys.stderr)
        raise SystemExit(130) from None
