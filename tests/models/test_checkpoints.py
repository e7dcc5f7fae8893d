from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from trl_step.models.checkpoints import (
    dtype_of_checkpoint,
    find_file,
    hub_arguments,
    read_tensors,
    read_value_head,
    weight_files,
)

HEAD = {"v_head.summary.weight": torch.ones(1, 4), "v_head.summary.bias": torch.zeros(1)}
BODY = {"a.weight": torch.ones(2, dtype=torch.bfloat16)}


def test_safetensors_win_over_pickle(tmp_path: Path) -> None:
    save_file({"v_head.x": torch.ones(1)}, tmp_path / "model.safetensors")
    torch.save({"v_head.x": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert read_value_head(str(tmp_path), {}, ("v_head",))["v_head.x"] == 1


def test_a_head_beside_the_weights_is_found(tmp_path: Path) -> None:
    save_file(BODY, tmp_path / "model.safetensors")
    torch.save(HEAD, tmp_path / "pytorch_model.bin")
    assert set(read_value_head(str(tmp_path), {}, ("v_head",))) == set(HEAD)


@pytest.mark.parametrize("zipped", [True, False])
def test_old_and_new_pickle_files(tmp_path: Path, zipped: bool) -> None:
    torch.save({**HEAD, **BODY}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert set(read_value_head(str(tmp_path), {}, ("v_head",))) == set(HEAD)


def test_only_shards_with_a_head_are_read(tmp_path: Path) -> None:
    save_file(HEAD, tmp_path / "two.safetensors")
    index = {"weight_map": {"a.weight": "one.safetensors", **dict.fromkeys(HEAD, "two.safetensors")}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_value_head(str(tmp_path), {}, ("v_head",))) == set(HEAD)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"v_head.summary.weight": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names the shard gone\.safetensors"):
        read_value_head(str(tmp_path), {}, ("v_head",))


def test_a_name_that_only_resembles_the_head_is_left_out(tmp_path: Path) -> None:
    save_file({"v_headless": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_value_head(str(tmp_path), {}, ("v_head",)) == {}


def test_dtype_of_a_checkpoint(tmp_path: Path) -> None:
    assert dtype_of_checkpoint(str(tmp_path), {}) is None
    torch.save(BODY, tmp_path / "pytorch_model.bin")
    assert dtype_of_checkpoint(str(tmp_path), {}) is None
    mixed = {"a": torch.ones(1, dtype=torch.int64), "v_head.x": torch.ones(1), "w": torch.ones(1, dtype=torch.float16)}
    save_file(mixed, tmp_path / "model.safetensors")
    assert dtype_of_checkpoint(str(tmp_path), {}) == torch.float16


def test_hub_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not on disk is asked of the hub, with the caller's arguments; what the hub does not have is None."""
    save_file(HEAD, tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, filename: str, **kwargs: object) -> str:
        asked.append((repository, filename, kwargs))
        if filename != "model.safetensors":
            raise EntryNotFoundError("none")
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    hub = hub_arguments({"revision": "v2", "token": None, "device_map": "auto", "subfolder": "inner"})
    assert hub == {"revision": "v2", "subfolder": "inner"}
    assert set(read_value_head("someone/model", hub, ("v_head",))) == set(HEAD)
    assert asked == [("someone/model", "model.safetensors", hub)]
    assert find_file("someone/model", "pytorch_model.bin", hub) is None
    assert len(list(weight_files("someone/model", {}))) == 1


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04not a checkpoint")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin"):
        read_tensors(tmp_path / "pytorch_model.bin")
