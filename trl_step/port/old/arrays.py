"""Arrays of one entry where a number belongs, which NumPy turned into it until 2.4: the answers of metrics."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from trl_step.replacing import replaced


@contextmanager
def old_arrays(report: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, numbers of datasets and of evaluate's metrics may come as arrays of one entry."""
    import datasets

    encode = datasets.Value.encode_example

    @functools.wraps(encode)
    def encode_example(feature: Any, value: Any) -> Any:
        if isinstance(value, np.ndarray) and value.ndim and value.size == 1:
            report("an array of one entry as a number", "its entry (NumPy 2.4 makes no number of it)")
            value = value.item()
        return encode(feature, value)

    with replaced(datasets.Value, "encode_example", encode_example):
        yield
