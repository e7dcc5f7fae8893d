"""Row A12: every kind of checkpoint comes back bit by bit; a value head that is not there is said clearly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_models import inputs_of, plain, same_state, trained_adapter, wrapped, wrapper_of
from trl_step.models import AutoModelForCausalLMWithValueHead


@pytest.mark.filterwarnings("error:.*holds no value head")
@pytest.mark.parametrize("shard", ["1GB", "3KB"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5", "bart"])
def test_round_trip(tmp_path: Path, name: str, shard: str) -> None:
    model = wrapped(name)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "3KB")
    again = wrapper_of(name).from_pretrained(str(tmp_path)).eval()
    assert same_state(again, model)
    (logits, _, values), (want_logits, _, want_values) = again(**inputs_of(name)), model(**inputs_of(name))
    assert torch.equal(logits, want_logits)
    assert torch.equal(values, want_values)


@pytest.mark.filterwarnings("error:.*holds no value head")
def test_adapter_round_trip(tmp_path: Path) -> None:
    model = trained_adapter(tmp_path)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter")
    state, want = again.state_dict(), model.state_dict()
    assert all(torch.equal(state[name], want[name]) for name in want)


@pytest.mark.filterwarnings("error:.*holds no value head")
def test_a_second_save_over_shards_leaves_no_old_head(tmp_path: Path) -> None:
    wrapped().save_pretrained(tmp_path, max_shard_size="3KB")
    model = wrapped()
    torch.nn.init.ones_(model.v_head.summary.weight)
    model.save_pretrained(tmp_path)
    assert same_state(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path), model)


def test_a_missing_head_is_said_once_with_its_place(tmp_path: Path) -> None:
    plain("gpt2").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds no value head") as seen:
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    messages = [str(warning.message) for warning in seen if "value head" in str(warning.message)]
    assert len(messages) == 1
    assert str(tmp_path) in messages[0]
    assert "random" in messages[0]


@pytest.mark.parametrize("kind", ["half", "wide"])
def test_a_damaged_head_is_refused(tmp_path: Path, kind: str) -> None:
    model = wrapped()
    state = model.state_dict()
    if kind == "half":
        del state["v_head.summary.bias"]
    else:
        state["v_head.summary.weight"] = torch.zeros(1, 99)
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="value head does not fit"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_a_lost_shard_is_an_error_not_a_random_head(tmp_path: Path) -> None:
    def load() -> Any:
        return AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)

    wrapped().save_pretrained(tmp_path, max_shard_size="3KB")
    os.remove(max(tmp_path.glob("*.safetensors")))
    with pytest.raises((OSError, ValueError)):
        load()
