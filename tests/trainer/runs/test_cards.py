"""The model card says how to load the policy that was trained: with a value head, without one, or with a critic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model

from tests.tiny import config as tiny_config
from tests.tiny import gpt2, t5, tokenizer, with_value_head
from trl_step import PPOTrainer


def build(model: Any = None, value_model: Any = None, **options: Any) -> Any:
    settings = tiny_config(**{"advantage_estimator": "grpo", **options})
    return PPOTrainer(settings, gpt2() if model is None else model, None, tokenizer(), value_model=value_model)


def card_of(ours: Any, folder: Path) -> str:
    ours.save_pretrained(str(folder / "policy"))
    return (folder / "policy" / "README.md").read_text()


def run_code_of(card: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], found)
    return found["model"]


@pytest.mark.parametrize("make", [gpt2, t5])
def test_the_card_of_a_plain_policy_names_no_value_head(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_of(build(make()), tmp_path)
    assert "value head" not in card
    assert "WithValueHead" not in card
    assert "| advantage_estimator | grpo |" in card
    assert type(run_code_of(card, tmp_path, monkeypatch)) is type(make())


def test_the_card_of_a_critic_says_where_it_is(tmp_path: Path) -> None:
    critic = with_value_head("llama", seed=1)
    card = card_of(build(value_model=critic, advantage_estimator="gae"), tmp_path)
    assert "WithValueHead" not in card
    assert "value_model" in card


def test_the_card_of_a_plain_adapter(tmp_path: Path) -> None:
    model = get_peft_model(gpt2(), LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True))
    card = card_of(build(model), tmp_path)
    assert "WithValueHead" not in card
    assert not (tmp_path / "policy" / "model.safetensors").exists()
