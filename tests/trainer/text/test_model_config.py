from __future__ import annotations

import pytest
import torch

from tests import tiny
from tests.trainer.text.text_tools import lora
from trl_step import ModelConfig, get_kbit_device_map, get_peft_config, get_quantization_config
from trl_step.trainer import peft_module_casting_to_bf16


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_both_names_of_the_dtype(name: str) -> None:
    config = ModelConfig(**{name: "float16"})
    assert config.dtype == config.torch_dtype == config.to_dict()["dtype"] == "float16"


@pytest.mark.parametrize("name", ["use_bnb_nested_quant", "bnb_4bit_use_double_quant"])
def test_four_bits(name: str) -> None:
    found = get_quantization_config(ModelConfig(load_in_4bit=True, dtype="bfloat16", **{name: True}))
    assert found.load_in_4bit
    assert found.bnb_4bit_compute_dtype is torch.bfloat16
    assert found.bnb_4bit_use_double_quant
    assert found.bnb_4bit_quant_type == "nf4"


def test_eight_bits_and_none() -> None:
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    assert get_quantization_config(ModelConfig()) is None
    with pytest.raises(ValueError, match="choose one"):
        ModelConfig(load_in_8bit=True, load_in_4bit=True)
    with pytest.raises(ValueError, match="one setting"):
        ModelConfig(dtype="float16", torch_dtype="float32")


def test_an_adapter_of_the_settings() -> None:
    assert get_peft_config(ModelConfig()) is None
    config = get_peft_config(
        ModelConfig(use_peft=True, lora_r=3, lora_target_modules=["c_attn"], use_dora=True, lora_task_type="SEQ_CLS")
    )
    assert (config.r, config.lora_alpha, config.use_dora, config.task_type) == (3, 32, True, "SEQ_CLS")
    assert config.target_modules == {"c_attn"}


def test_device_map_without_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert get_kbit_device_map() is None
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert get_kbit_device_map() == {"": 0}


def test_casting_keeps_norms_in_float32() -> None:
    from peft import get_peft_model

    model = get_peft_model(tiny.gpt2().half(), lora())
    model.base_model.model.transformer.wte.float()
    peft_module_casting_to_bf16(model)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert all(dtype is torch.bfloat16 for name, dtype in dtypes.items() if "lora_" in name or "wte" in name)
    assert all(dtype is torch.float32 for name, dtype in dtypes.items() if "ln_" in name)
    assert all(dtype is torch.float16 for name, dtype in dtypes.items() if "mlp" in name)


def test_all_linear_layers_on_the_command_line() -> None:
    from peft import get_peft_model
    from transformers import HfArgumentParser

    (config,) = HfArgumentParser(ModelConfig).parse_args_into_dataclasses(
        ["--use_peft", "--lora_target_modules", "all-linear"]
    )
    assert config.lora_target_modules == "all-linear"
    model = get_peft_model(tiny.llama(), get_peft_config(config))
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert ModelConfig(lora_target_modules=["c_attn"]).lora_target_modules == ["c_attn"]
