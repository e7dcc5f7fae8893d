"""Warnings that point to the user's line, however deep in this package they are raised."""

from __future__ import annotations

import sys
import sysconfig
import traceback
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parents[1])


def warn_user(message: str) -> None:
    """`warnings.warn` on behalf of the first caller outside this package."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


def described(error: BaseException) -> str:
    """Type, message, and the user's line of an error: `KeyError: 'a' (game.py:12 in step)`.

    The line is the innermost one outside of this package, of installed packages and of Python's library; the innermost
    of all if there is no such line.
    """
    try:
        message = str(error)
    except Exception:
        message = ""
    text = f"{type(error).__name__}{': ' * bool(message)}{message}"
    frames = traceback.extract_tb(error.__traceback__)
    others = (PACKAGE, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    if not frames:
        return text
    frame = (own or frames)[-1]
    return f"{text} ({frame.filename}:{frame.lineno} in {frame.name})"
