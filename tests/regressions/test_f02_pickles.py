"""Row F2: a file whose pickle would run code is refused, and the code does not run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_models import lora, plain, shake_adapters, trained_adapter, wrapped
from trl_step.models import AutoModelForCausalLMWithValueHead
from trl_step.models.checkpoints import read_tensors

Wrapper = AutoModelForCausalLMWithValueHead
HEAD = {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.mark, "ran")


@pytest.fixture(autouse=True)
def mark(tmp_path: Path) -> Iterator[Path]:
    """The file that a bomb would write."""
    path = tmp_path / "it-ran"
    yield path
    assert not path.exists()


def lay(path: Path, mark: Path, zipped: bool = True, **tensors: torch.Tensor) -> None:
    torch.save({**tensors, "bomb": Bomb(mark)}, path, _use_new_zipfile_serialization=zipped)


def test_the_bomb_is_one(tmp_path: Path) -> None:
    other = tmp_path / "other"
    pickle.loads(pickle.dumps(Bomb(other)))
    assert other.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_model(tmp_path: Path, mark: Path, zipped: bool) -> None:
    model = plain("gpt2")
    model.config.save_pretrained(tmp_path)
    lay(tmp_path / "pytorch_model.bin", mark, zipped, **model.state_dict())
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        Wrapper.from_pretrained(tmp_path)


def test_a_shard(tmp_path: Path, mark: Path) -> None:
    model = plain("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "one.bin")
    lay(tmp_path / "two.bin", mark, **HEAD)
    weights = {**dict.fromkeys(model.state_dict(), "one.bin"), **dict.fromkeys(HEAD, "two.bin")}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        Wrapper.from_pretrained(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_value_head(tmp_path: Path, mark: Path, zipped: bool) -> None:
    """Beside an adapter, as release 0.7 wrote it; transformers never reads this file, we do."""
    trained_adapter(tmp_path)
    (tmp_path / "adapter" / "model.safetensors").unlink()
    lay(tmp_path / "adapter" / "pytorch_model.bin", mark, zipped, **HEAD)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is refused.*could run code"):
        Wrapper.from_pretrained(tmp_path / "adapter")


def test_an_adapter(tmp_path: Path, mark: Path) -> None:
    trained_adapter(tmp_path)
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    lay(tmp_path / "adapter" / "adapter_model.bin", mark, **tensors)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        Wrapper.from_pretrained(tmp_path / "adapter")


def test_a_reward_adapter(tmp_path: Path, mark: Path) -> None:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    plain("gpt2").save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    shake_adapters(get_peft_model(base, lora(task_type="SEQ_CLS"))).save_pretrained(tmp_path / "reward")
    weights = tmp_path / "reward" / "adapter_model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    lay(tmp_path / "reward" / "adapter_model.bin", mark, **tensors)
    with pytest.raises(ValueError, match=r"adapter_model\.bin is refused"):
        wrapped(peft_config=lora(), reward_adapter=str(tmp_path / "reward"))


def test_tensors_in_a_pickle_are_read(tmp_path: Path) -> None:
    torch.save(HEAD, tmp_path / "pytorch_model.bin")
    assert set(read_tensors(tmp_path / "pytorch_model.bin")) == set(HEAD)
