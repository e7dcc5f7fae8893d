"""Temporarily replaces an attribute of a module or class; who asks for one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

_ABSENT: Any = object()

LIBRARIES = (
    "transformers", "accelerate", "peft", "datasets", "torch", "trl_step", "dataclasses", "copy", "inspect", "importlib"
)  # fmt: skip
"""They see packages and objects as they are without the kit."""


def is_asked_by_library(libraries: Sequence[str] = LIBRARIES) -> bool:
    """Whether one of `libraries` asks for the attribute that the calling function answers, or calls that function."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).partition(".")[0] in libraries


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Inside, `owner.name` is `value`; afterwards it is restored, or removed if it did not exist."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
