"""Row A5, the models' share: what a model with adapters is measured against. `reference_adapter` is that switch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import GPT2LMHeadModel

from tests.models.tiny_models import inputs_of, lora, plain, shake_adapters, trained_adapter, wrapped
from trl_step.models import AutoModelForCausalLMWithValueHead


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs_of())[0]


def check_reference(model: Any, want: torch.Tensor) -> None:
    """The reference says `want` before and after training, the policy moves."""
    model.eval()
    assert torch.equal(logits(model), want)
    shake_adapters(model, seed=77)
    moved = logits(model)
    assert not torch.equal(moved, want)
    with model.reference_adapter():
        assert torch.equal(logits(model), want)
    assert torch.equal(logits(model), moved)


def test_a_fresh_adapter_is_measured_against_the_base_model() -> None:
    model = wrapped(peft_config=lora())
    assert model.reference_adapter_name is None
    check_reference(model, plain("gpt2")(**inputs_of()).logits)


def test_a_trained_adapter_from_a_folder_is_measured_against_itself(tmp_path: Path) -> None:
    start = logits(trained_adapter(tmp_path))
    base = plain("gpt2")(**inputs_of()).logits
    assert not torch.equal(start, base)
    check_reference(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=True), start)


def test_a_trained_adapter_on_a_model_object_is_measured_against_itself(tmp_path: Path) -> None:
    start = logits(trained_adapter(tmp_path))
    base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    peft_model = PeftModel.from_pretrained(base, str(tmp_path / "adapter"), is_trainable=True)
    check_reference(AutoModelForCausalLMWithValueHead.from_pretrained(peft_model), start)


def test_a_fresh_adapter_on_a_model_object_is_measured_against_the_base_model() -> None:
    peft_model = get_peft_model(plain("gpt2"), lora())
    model = AutoModelForCausalLMWithValueHead.from_pretrained(peft_model)
    assert model.reference_adapter_name is None
    check_reference(model, plain("gpt2")(**inputs_of()).logits)


def test_the_optimizer_never_sees_the_reference(tmp_path: Path) -> None:
    trained_adapter(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=True)
    for _ in range(2):
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert names
        assert not any(".reference." in name for name in names)
        with model.reference_adapter():
            pass


def test_an_adapter_that_cannot_be_held_twice_says_so_when_it_matters(tmp_path: Path) -> None:
    trained_adapter(tmp_path, bias="all")
    with pytest.warns(UserWarning, match="Pass a ref_model"):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "adapter", is_trainable=True)
    logits(model)
    with pytest.raises(ValueError, match="Pass a ref_model"), model.reference_adapter():
        pass


def test_a_model_without_adapters_has_no_reference_in_itself() -> None:
    with pytest.raises(ValueError, match="create_reference_model"), wrapped().reference_adapter():
        pass
