from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.tiny_models import lora, same_state, wrapped
from trl_step.models import AutoModelForCausalLMWithValueHead


def test_safetensors_is_the_only_format(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="safe_serialization=False is ignored"):
        wrapped().save_pretrained(tmp_path, safe_serialization=False)
    wrapped(peft_config=lora()).save_pretrained(save_directory=tmp_path / "adapter")
    written = {path.name for path in tmp_path.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".safetensors")}
    assert written == {"model.safetensors", "adapter_model.safetensors"}


def test_the_head_beside_an_adapter_is_a_file_of_its_own(tmp_path: Path) -> None:
    model = wrapped(peft_config=lora())
    model.save_pretrained(tmp_path)
    head = load_file(tmp_path / "model.safetensors")
    assert set(head) == {"v_head.summary.weight", "v_head.summary.bias"}
    assert torch.equal(head["v_head.summary.weight"], model.v_head.summary.weight)


def test_a_whole_model_beside_an_adapter_is_warned_of(tmp_path: Path) -> None:
    wrapped(peft_config=lora()).save_pretrained(tmp_path)
    adapter = (tmp_path / "adapter_model.safetensors").read_bytes()
    model = wrapped("gpt2")
    with pytest.warns(UserWarning, match="loads the adapter in place of the model: move adapter_config"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == adapter
    (tmp_path / "adapter_config.json").unlink()
    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    assert not again.is_peft_model
    assert same_state(again, model)


def test_gathered_weights_are_saved_in_the_place_of_the_models(tmp_path: Path) -> None:
    model = wrapped()
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    kept = dict(gathered)
    model.save_pretrained(tmp_path, state_dict=gathered)
    written = load_file(tmp_path / "model.safetensors")
    assert gathered == kept
    for name in ("v_head.summary.bias", "transformer.ln_f.weight"):
        assert torch.equal(written[name], gathered[name])


def test_gathered_adapters_are_saved_in_the_place_of_the_models(tmp_path: Path) -> None:
    model = wrapped(peft_config=lora())
    gathered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=gathered)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_B.{}weight"
    assert torch.equal(
        load_file(tmp_path / "adapter_model.safetensors")[name.format("")], gathered[name.format("default.")]
    )
    head = load_file(tmp_path / "model.safetensors")
    assert torch.equal(head["v_head.summary.bias"], gathered["v_head.summary.bias"])


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    wrapped(peft_config=lora()).save_pretrained(tmp_path, is_main_process=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("adapter", [None, lora()])
def test_push_to_hub_uploads_what_save_pretrained_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: Any
) -> None:
    calls = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, repo_id: str, **kwargs: Any) -> SimpleNamespace:
            calls.append(("create", repo_id, kwargs))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def upload_folder(self, repo_id: str, folder_path: str, **kwargs: Any) -> str:
            calls.append(("upload", repo_id, sorted(os.listdir(folder_path)), kwargs))
            return "the commit"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    model = wrapped(peft_config=adapter)
    names = [name for name, _ in model.named_modules()]
    assert model.push_to_hub("toy", token="t", private=True, create_pr=True, max_shard_size="1GB") == "the commit"
    model.save_pretrained(tmp_path)
    assert calls == [
        ("token", "t"),
        ("create", "toy", {"private": True, "exist_ok": True}),
        ("upload", "me/toy", sorted(os.listdir(tmp_path)), calls[2][3]),
    ]
    assert calls[2][3] == {"create_pr": True, "commit_message": "Upload AutoModelForCausalLMWithValueHead"}
    assert [name for name, _ in model.named_modules()] == names


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = wrapped()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert same_state(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path), model)
