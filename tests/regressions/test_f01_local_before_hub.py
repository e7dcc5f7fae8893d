"""Row F1: a path that exists on disk is never looked up on a hub."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_models import inputs_of, lora, plain, same_state, shake_adapters, trained_adapter, wrapped
from trl_step.models import AutoModelForCausalLMWithValueHead

Wrapper = AutoModelForCausalLMWithValueHead


@pytest.fixture(autouse=True)
def lookups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """Whatever is asked of a hub; the hub would answer with a model of somebody else."""
    asked: list[Any] = []
    evil = wrapped()
    torch.nn.init.constant_(evil.v_head.summary.weight, 666.0)
    evil.save_pretrained(tmp_path / "evil")

    def download(repository: str, filename: str, **_: Any) -> str:
        asked.append((repository, filename))
        return str(tmp_path / "evil" / filename)

    def resolve(host: str, *_: Any, **__: Any) -> Any:
        asked.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.chdir(tmp_path)
    yield asked
    assert asked == []


@pytest.mark.parametrize("source", ["someone/model", "./someone/model", Path("someone/model")])
def test_a_folder_that_looks_like_a_repository(source: str | Path) -> None:
    model = wrapped()
    model.save_pretrained("someone/model")
    assert same_state(Wrapper.from_pretrained(source), model)


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_a_folder_without_a_value_head() -> None:
    plain("gpt2").save_pretrained("someone/model")
    assert Wrapper.from_pretrained("someone/model").v_head.summary.weight.abs().max() < 100


def test_adapters(tmp_path: Path) -> None:
    model = trained_adapter(Path("someone"))
    again = Wrapper.from_pretrained("someone/adapter", is_trainable=True).eval()
    assert torch.equal(again(**inputs_of())[0], model(**inputs_of())[0])
    again.save_pretrained("someone/again")


def test_an_adapter_folder_without_weights(tmp_path: Path) -> None:
    trained_adapter(Path("someone"))
    Path("someone/adapter/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has an adapter_config"):
        Wrapper.from_pretrained("someone/adapter")


def test_reward_adapters() -> None:
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification

    plain("gpt2").save_pretrained("someone/base")
    base = AutoModelForSequenceClassification.from_pretrained("someone/base", num_labels=1)
    shake_adapters(get_peft_model(base, lora(task_type="SEQ_CLS"))).save_pretrained("someone/reward")
    wrapped(peft_config=lora(), reward_adapter="someone/reward")
    Path("someone/reward/adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match="has an adapter_config"):
        wrapped(peft_config=lora(), reward_adapter="someone/reward")
    Path("someone/nothing").mkdir()
    with pytest.raises(ValueError, match="no adapter is found"):
        wrapped(peft_config=lora(), reward_adapter="someone/nothing")
