"""Trees come back with the same types and bits, and nothing in a file can run code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from trl_step.trainer.runs.codec import TAG, cloned, read_tree, write_tree


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


TREES = {
    "numbers": {"a": 0.1, "b": -1, "c": None, "d": True, "e": "text", "large": 2**70, "least": 5e-324},
    "not finite": [math.inf, -math.inf, math.nan],
    "containers": {"list": [1, [2]], "tuple": (1, (2.5, "x")), "empty": [{}, [], ()]},
    "keys": {0: "a", "0": "b", (1, 2): {3: 4}, None: 5},
    "the tag": {TAG: "tensor", "name": "a"},
    "tensors": {"a": torch.randn(2, 3), "b": [torch.tensor(3), torch.zeros(0)], "c": {1: torch.ones(2).bool()}},
    "dtypes": [torch.ones(3, dtype=dtype) for dtype in (torch.bfloat16, torch.float64, torch.uint8, torch.int64)],
    "slashes": {"a/b": torch.ones(1), "a": {"b": torch.zeros(1)}},
    "one tensor": torch.arange(3),
}


@pytest.mark.parametrize("name", TREES)
def test_round_trip(name: str, tmp_path: Path) -> None:
    files = write_tree(tmp_path, "tree", TREES[name])
    read = read_tree(tmp_path, "tree")
    assert same(TREES[name], read)
    assert same(TREES[name], cloned(read))
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    assert {Path(file).suffix for file in files} <= {".json", ".safetensors"}


def test_tensors_that_share_their_memory_are_written_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    write_tree(tmp_path, "tied", {"embedding": weight, "head": weight, "row": weight[3], "turned": weight.T})
    assert 80_000 < (tmp_path / "tied.safetensors").stat().st_size < 85_000
    read = read_tree(tmp_path, "tied")
    assert torch.equal(read["head"], weight)
    assert torch.equal(read["row"], weight[3])
    assert torch.equal(read["turned"], weight.T)


def test_what_torch_reads_without_pickled_code_is_taken(tmp_path: Path) -> None:
    assert write_tree(tmp_path, "optimizer", {"a": torch.ones(2), "kind": torch.float16}) == ["optimizer.pt"]
    assert read_tree(tmp_path, "optimizer")["kind"] is torch.float16


def test_anything_else_is_named(tmp_path: Path) -> None:
    class Anything:
        pass

    with pytest.raises(TypeError, match="state/0/1 is a Anything"):
        write_tree(tmp_path, "optimizer", {"state": {0: [1, Anything()]}})


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle ran",))


def test_a_pickle_in_the_place_of_a_file_does_not_run(tmp_path: Path) -> None:
    write_tree(tmp_path, "optimizer", {"kind": torch.float16})
    torch.save({"state": Bomb()}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match="weights_only"):
        read_tree(tmp_path, "optimizer")
