"""Warnings that name the user's line, however deep in this package they are raised; errors in words."""

from __future__ import annotations

import logging
import os
import site
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PACKAGE = str(Path(__file__).resolve().parents[1])
INSIDE = PACKAGE + os.sep
"""How the files of this package begin."""
OF_OTHERS = (
    "<frozen", site.getusersitepackages(), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
)  # fmt: skip
"""How the files of installed packages and of Python's library begin."""


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """`warnings.warn` on behalf of the user's line, see `users_frame`."""
    frame = users_frame()
    module, registry = frame.f_globals.get("__name__"), frame.f_globals.setdefault("__warningregistry__", {})
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)


def users_frame() -> FrameType:
    """The innermost frame outside of this package, of installed packages and of Python's library.

    If there is none, as in a program that is an installed package itself: the innermost one outside of this package.
    """
    frame: FrameType | None = sys._getframe(1)
    outside = None
    while frame is not None:
        # code that is made names no file, but its module has one
        file = str(frame.f_globals.get("__file__") or frame.f_code.co_filename)
        if not file.startswith(INSIDE) and not _is_made(frame):
            if not file.startswith(OF_OTHERS):
                return frame
            outside = outside or frame
        frame = frame.f_back
    return outside or sys._getframe(1)


def _is_made(frame: FrameType) -> bool:
    """Whether it is the `__init__` of a dataclass, which stands in no file."""
    return (frame.f_code.co_filename, frame.f_code.co_name) == ("<string>", "__init__")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers logs errors only."""
    from transformers.utils import logging as log  # not at the top: a check of a script needs neither it nor torch

    verbosity = log.get_verbosity()
    log.set_verbosity_error()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)


def leave_out_default_loss() -> None:
    """From now on transformers does not log that a model without a `loss_type`, such as GPT-2, has the default loss."""
    logging.getLogger("transformers.modeling_utils").addFilter(_is_no_default_loss)


def _is_no_default_loss(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("`loss_type=None` was set")


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
    own = [frame for frame in frames if not frame.filename.startswith((INSIDE, *OF_OTHERS))]
    if not frames:
        return text
    frame = (own or frames)[-1]
    return f"{text} ({frame.filename}:{frame.lineno} in {frame.name})"
