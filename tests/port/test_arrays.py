"""An array of one entry is a number for datasets, as before NumPy 2.4."""

from __future__ import annotations

import pytest

from tests.port.test_run import run

SOURCE = """
import datasets
import numpy as np
features = datasets.Features({"label": datasets.Value("int32"), "score": datasets.Value("float32")})
encoded = features.encode_batch({"label": np.argmax([[[1.0], [4.0]], [[2.0], [3.0]]], axis=0), "score": [2.5, 3]})
"""


def test_it_is_its_entry() -> None:
    told: list[str] = []
    assert run(SOURCE, told)["encoded"] == {"label": [1, 0], "score": [2.5, 3.0]}
    assert told == ["old.py:5: an array of one entry as a number -> its entry (NumPy 2.4 makes no number of it)"]


def test_two_entries_are_refused_as_ever() -> None:
    with pytest.raises(TypeError, match=r"0-dimensional|length-1"):
        run(SOURCE.replace("axis=0", "axis=2, keepdims=True"))
