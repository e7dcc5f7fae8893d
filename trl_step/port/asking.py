"""Who asks for an attribute that the kit replaces."""

from __future__ import annotations

import sys
from collections.abc import Sequence

LIBRARIES = (
    "transformers", "accelerate", "peft", "datasets", "torch", "trl_step", "dataclasses", "copy", "inspect", "importlib"
)  # fmt: skip
"""They see packages and objects as they are without the kit."""


def is_asked_by_library(libraries: Sequence[str] = LIBRARIES) -> bool:
    """Whether one of `libraries` asks for the attribute that the calling function answers, or calls that function."""
    return str(sys._getframe(2).f_globals.get("__name__", "")).partition(".")[0] in libraries
