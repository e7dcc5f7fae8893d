"""Row A13: `load_state_dict(state_dict())` works, strictly; a saved folder still loads as a plain model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.models.tiny_models import inputs_of, lora, same_state, shake_adapters, trained_adapter, wrapped

KINDS = {"gpt2": {}, "llama": {}, "t5": {}, "lora": {"peft_config": lora()}}


def build(kind: str) -> nn.Module:
    return wrapped("gpt2" if kind == "lora" else kind, **KINDS[kind])


def moved(kind: str) -> nn.Module:
    return shake_adapters(build(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_strict_round_trip(kind: str) -> None:
    model, other = moved(kind), build(kind)
    assert not same_state(model, other)
    result = other.load_state_dict(model.state_dict())
    assert same_state(model, other)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


def test_names_are_those_of_a_plain_checkpoint() -> None:
    model = wrapped()
    plain_names = list(model.pretrained_model.state_dict())
    assert list(model.state_dict()) == [*plain_names, "v_head.summary.weight", "v_head.summary.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_as_a_part_of_another_module(kind: str) -> None:
    """DistributedDataParallel and its like call the hooks of a part, not its methods."""
    model, other = nn.ModuleDict({"module": moved(kind)}), nn.ModuleDict({"module": build(kind)})
    state = model.state_dict()
    assert list(state) == [f"module.{name}" for name in model["module"].state_dict()]
    other.load_state_dict(state)
    assert same_state(model, other)


@pytest.mark.parametrize("kind", KINDS)
def test_strict_means_strict_and_speaks_the_same_names(kind: str) -> None:
    model = build(kind)
    state = model.state_dict()
    lost = next(iter(state))
    shared = [name for name in state if state[name].data_ptr() == state[lost].data_ptr()]
    for name in shared:
        del state[name]
    del state["v_head.summary.bias"]
    state["nobody.knows"] = torch.zeros(1)
    result = model.load_state_dict(state, strict=False)
    assert sorted(result.missing_keys) == sorted([*shared, "v_head.summary.bias"])
    assert result.unexpected_keys == ["nobody.knows"]
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*v_head\.summary\.bias.*Unexpected key.*nobody\.knows"):
        model.load_state_dict(state)


def test_the_given_state_dict_is_left_alone() -> None:
    model = wrapped()
    state = model.state_dict()
    names = list(state)
    model.load_state_dict(state)
    assert list(state) == names


def test_prefix_and_keep_vars() -> None:
    model = wrapped()
    state = model.state_dict(prefix="x.", keep_vars=True)
    assert list(state) == [f"x.{name}" for name in model.state_dict()]
    assert state["x.v_head.summary.weight"] is model.v_head.summary.weight


def test_safetensors_own_functions(tmp_path: Path) -> None:
    """As accelerate writes and reads a training state."""
    model, other = moved("gpt2"), build("gpt2")
    save_model(model, str(tmp_path / "state.safetensors"))
    load_model(other, str(tmp_path / "state.safetensors"))
    assert same_state(model, other)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_saved_folder_is_a_plain_model(tmp_path: Path, name: str) -> None:
    model = wrapped(name)
    model.save_pretrained(tmp_path)
    auto = AutoModelForSeq2SeqLM if name == "t5" else AutoModelForCausalLM
    plain_model = auto.from_pretrained(tmp_path).eval()
    assert torch.equal(plain_model(**inputs_of(name)).logits, model(**inputs_of(name))[0])


def test_a_saved_adapter_is_a_plain_adapter(tmp_path: Path) -> None:
    model = trained_adapter(tmp_path)
    plain_model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(plain_model(**inputs_of()).logits, model(**inputs_of())[0])
