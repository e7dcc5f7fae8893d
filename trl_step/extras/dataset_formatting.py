"""Legacy import path: the code is in `trl_step.data`."""

from __future__ import annotations

from typing import Any

from trl_step.data.formatting import (
    conversations_formatting_function,
    get_formatting_func_from_dataset,
    instructions_formatting_function,
    known_formats,
)
from trl_step.data.packing import ConstantLengthDataset

__all__ = [  # noqa: F822
    "ConstantLengthDataset",
    "FORMAT_MAPPING",
    "conversations_formatting_function",
    "get_formatting_func_from_dataset",
    "instructions_formatting_function",
]


def __getattr__(name: str) -> Any:
    if name == "FORMAT_MAPPING":  # made of classes of datasets, which takes a second to import
        return known_formats()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
