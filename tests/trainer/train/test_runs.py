"""Checkpoints, resumed runs, adapters and cards of the trainers with `train()`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.hub_tools import Hub
from tests.trainer.train import loops

BOTH = pytest.mark.parametrize("make", [loops.rloo, loops.ppo], ids=["rloo", "ppo"])
SAVED = {"save_strategy": "steps", "save_steps": 2, "total_episodes": 24}
LORA = {"r": 2, "target_modules": ["c_attn"], "task_type": "CAUSAL_LM"}


def moments(trainer: Any) -> list[torch.Tensor]:
    return [state["exp_avg"] for state in trainer.optimizer.state.values()]


def history(trainer: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in entry.items() if name != "eps"} for entry in trainer.state.log_history]


@BOTH
@pytest.mark.parametrize("how", ["newest", "folder"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, make: Any, how: str) -> None:
    whole = make(tmp_path / "whole", **SAVED)
    whole.train()
    half = make(tmp_path / "half", **SAVED)
    half.add_callback(_StopAt(3))
    half.train()
    torch.rand(7)  # another process would be elsewhere in its stream
    again = make(tmp_path / "half", **SAVED)
    again.train(resume_from_checkpoint=True if how == "newest" else str(tmp_path / "half" / "checkpoint-2"))
    assert history(again) == history(whole)
    assert all(torch.equal(value, loops.weights(again)[name]) for name, value in loops.weights(whole).items())
    assert all(map(torch.equal, moments(whole), moments(again)))


class _StopAt(transformers.TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        control.should_training_stop = state.global_step == self.step
        return control


def test_without_a_whole_checkpoint_nothing_is_resumed(tmp_path: Path) -> None:
    trainer = loops.rloo(tmp_path, **SAVED)
    with pytest.raises(ValueError, match="there is no whole checkpoint in"):
        trainer.train(resume_from_checkpoint=True)
    trainer.train()
    (tmp_path / "checkpoint-6" / "state" / "manifest.json").unlink()
    again = loops.rloo(tmp_path, **SAVED)
    again.train(resume_from_checkpoint=True)
    assert history(again) == history(trainer)
    with pytest.raises(ValueError, match=r"cliprange: 0\.2 in the state, 0.3 here"):
        loops.rloo(tmp_path, **SAVED, cliprange=0.3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_old_checkpoints_are_removed(tmp_path: Path) -> None:
    loops.rloo(tmp_path, **{**SAVED, "save_steps": 1}, save_total_limit=2).train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_saved_models_are_loaded_by_transformers(tmp_path: Path) -> None:
    trainer = loops.ppo(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    policy = trainer.accelerator.unwrap_model(trainer.model)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    critic = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    assert torch.equal(loaded.lm_head.weight, policy.policy.pretrained_model.lm_head.weight)
    assert torch.equal(critic.score.weight, policy.critic.value_model.score.weight)


def test_an_adapter_is_trained_and_the_base_is_the_reference(tmp_path: Path) -> None:
    trainer = loops.ppo(tmp_path, peft_config=LoraConfig(**LORA), total_episodes=16)
    before = loops.weights(trainer)
    trainer.train()
    changed = {name for name, value in loops.weights(trainer).items() if not torch.equal(value, before[name])}
    assert all("lora_" in name or name.startswith("critic.") for name in changed)
    assert any("lora_" in name for name in changed)
    kls = [entry["objective/kl"] for entry in trainer.state.log_history]
    assert kls[0] == 0.0
    assert abs(kls[-1]) > 1e-4
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()


def test_named_adapters_of_policy_and_reference(tmp_path: Path) -> None:
    def model() -> Any:
        torch.manual_seed(3)
        policy = get_peft_model(loops.policy(), LoraConfig(**LORA), adapter_name="mine")
        policy.add_adapter("theirs", LoraConfig(**LORA, init_lora_weights=False))
        return policy

    names = {"model_adapter_name": "mine", "ref_adapter_name": "theirs"}
    trainer = loops.ppo(tmp_path, model=model(), critic=False, **names)
    before = loops.weights(trainer)
    trainer.train()
    changed = {name for name, value in loops.weights(trainer).items() if not torch.equal(value, before[name])}
    assert any(".mine." in name for name in changed)
    assert not any(".theirs." in name for name in changed)
    assert abs(trainer.state.log_history[0]["objective/kl"]) > 1e-3
    plain = loops.ppo(tmp_path, model=model(), critic=False, model_adapter_name="mine")
    plain.train()
    assert plain.state.log_history[0]["objective/kl"] == 0.0


def test_cards_and_pushes(tmp_path: Path, hub: Hub) -> None:
    trainer = loops.rloo(tmp_path / "mine", push_to_hub=True, hub_model_id="me/mine", **SAVED)
    trainer.create_model_card(model_name="My model", dataset_name="films", tags=["poems"])
    card = (tmp_path / "mine" / "README.md").read_text()
    assert card.startswith("---\n")
    assert "# My model" in card
    assert "datasets:\n- films\n" in card
    assert "tags:\n- rloo\n- poems\n- trl-step" in card
    trainer.push_to_hub("The end")
    assert ("create_repo", {"repo_id": "me/mine", "private": None, "exist_ok": True}) in hub.calls
    assert hub.calls[-1][1]["commit_message"] == "The end"
    assert {"model.safetensors", "README.md"} <= hub.uploads[-1]
    trainer.train()
    assert len(hub.uploads) == 4
