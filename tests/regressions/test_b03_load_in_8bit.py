"""Row B3: transformers 5 has no `load_in_8bit` and `load_in_4bit` any more; they become a `BitsAndBytesConfig`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.models.tiny_models import lora, plain
from trl_step.models import AutoModelForCausalLMWithValueHead, policy
from trl_step.models.loading import current_device, translate_quantization


class Wrapper(AutoModelForCausalLMWithValueHead):
    """Catches what would reach transformers: the packages that quantize need a GPU."""

    class transformers_parent_class:
        _model_mapping: ClassVar[dict[type, Any]] = {}
        seen: ClassVar[dict[str, Any]] = {}

        @classmethod
        def from_pretrained(cls, source: str, *args: Any, **kwargs: Any) -> Any:
            cls.seen = kwargs
            model = plain("gpt2")
            model.is_loaded_in_8bit = "quantization_config" in kwargs
            return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    plain("gpt2").save_pretrained(tmp_path)
    monkeypatch.setattr("trl_step.models.loading.find_spec", lambda name: object())
    return str(tmp_path)


def what_transformers_gets(folder: str, **kwargs: Any) -> dict[str, Any]:
    policy.SAID_WITHOUT_HEAD.clear()
    with pytest.warns(UserWarning, match="holds no value head"):
        Wrapper.from_pretrained(folder, **kwargs)
    return Wrapper.transformers_parent_class.seen


@pytest.mark.parametrize("bits", [8, 4])
def test_the_flag_becomes_a_configuration(folder: str, bits: int) -> None:
    seen = what_transformers_gets(folder, **{f"load_in_{bits}bit": True})
    config = seen.pop("quantization_config")
    assert isinstance(config, BitsAndBytesConfig)
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == 8, bits == 4)
    # the quantizer chooses the dtype of what stays unquantized
    assert seen == {"device_map": {"": current_device()}}


def test_details_go_along(folder: str) -> None:
    details = {"llm_int8_threshold": 4.0, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    seen = what_transformers_gets(folder, load_in_4bit=True, device_map="auto", dtype=torch.float16, **details)
    config = seen["quantization_config"]
    assert {name: getattr(config, name) for name in details} == details
    assert not details.keys() & seen.keys()
    assert (seen["device_map"], seen["dtype"]) == ("auto", torch.float16)


def test_false_is_no_wish(folder: str) -> None:
    seen = what_transformers_gets(folder, load_in_8bit=False, load_in_4bit=False)
    assert seen == {"dtype": torch.float32}


def test_a_quantized_model_is_prepared_for_an_adapter(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[dict[str, Any]] = []

    def prepare(model: Any, **kwargs: Any) -> Any:
        prepared.append(kwargs)
        return model

    monkeypatch.setattr("peft.prepare_model_for_kbit_training", prepare)
    what_transformers_gets(folder, load_in_8bit=True, peft_config=lora(), use_gradient_checkpointing=False)
    what_transformers_gets(folder, peft_config=lora())
    assert prepared == [{"use_gradient_checkpointing": False}]


def test_a_missing_package_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_step.models.loading.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install bitsandbytes"):
        Wrapper.from_pretrained(folder, load_in_8bit=True)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"load_in_8bit": True, "load_in_4bit": True},
        {"load_in_8bit": True, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    ],
)
def test_contradictions_are_refused(kwargs: dict[str, Any]) -> None:
    kept = dict(kwargs)
    with pytest.raises(ValueError, match="load_in_8bit"):
        translate_quantization(kwargs)
    assert kwargs == kept
