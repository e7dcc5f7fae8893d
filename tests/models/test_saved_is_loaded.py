"""What was saved, here or by another tool, is loaded whole: the right class, and the value head."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from tests.models.families import small_config
from tests.models.tiny_models import SIZES, VISION, WIDTH, inputs_of, lora, plain, trained_adapter, wrapped
from tests.tiny import trainer as tiny_trainer
from trl_step.models import AutoModelForCausalLMWithValueHead

Wrapper = AutoModelForCausalLMWithValueHead

TEXT = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
TURNED = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
QWEN = {"depth": 1, "num_heads": 2, "patch_size": 14}


def model_of(name: str, **configs: Any) -> Any:
    """A tiny multimodal model: `name` of its class without the ending, parts of its configuration."""
    config = getattr(transformers, f"{name}Config")(**configs)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config)


def llama_config() -> Any:
    return transformers.LlamaConfig(**TEXT)


MULTIMODAL: dict[str, Callable[[], Any]] = {
    "Qwen2VL": lambda: model_of(
        "Qwen2VL", text_config=TURNED, vision_config={**QWEN, "embed_dim": 8, "hidden_size": WIDTH}
    ),
    "Qwen2_5_VL": lambda: model_of(
        "Qwen2_5_VL",
        text_config=TURNED,
        vision_config={**QWEN, "hidden_size": 8, "out_hidden_size": WIDTH, "intermediate_size": 8},
    ),
    "Llava": lambda: model_of(
        "Llava", text_config=llama_config(), vision_config=transformers.CLIPVisionConfig(**VISION)
    ),
    "Idefics3": lambda: model_of("Idefics3", text_config=llama_config(), vision_config=VISION, scale_factor=1),
    "SmolVLM": lambda: model_of("SmolVLM", text_config=llama_config(), vision_config=VISION, scale_factor=1),
    "Mistral3": lambda: model_of(
        "Mistral3",
        text_config=transformers.MistralConfig(**TEXT),
        vision_config=transformers.PixtralVisionConfig(**VISION, head_dim=4),
    ),
    "Qwen2Audio": lambda: model_of(
        "Qwen2Audio",
        text_config=transformers.Qwen2Config(**TEXT).to_dict(),
        audio_config={
            "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 8, "num_mel_bins": 8,
            "max_source_positions": 8,
        },
    ),
}  # fmt: skip


def multimodal(name: str) -> Any:
    torch.manual_seed(0)
    model = MULTIMODAL[name]()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    wrapper = Wrapper.from_pretrained(model).eval()
    nn.init.normal_(wrapper.v_head.summary.weight)
    return wrapper


def outputs(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        logits, _, values = model.eval()(**inputs_of())
    return logits, values


@pytest.mark.parametrize("name", MULTIMODAL)
def test_a_multimodal_policy_is_found_by_its_folder(tmp_path: Path, name: str) -> None:
    before = multimodal(name)
    before.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*holds no value head")
        loaded = Wrapper.from_pretrained(tmp_path)
    assert type(loaded.pretrained_model) is type(before.pretrained_model)
    torch.testing.assert_close(outputs(loaded), outputs(before))


@pytest.mark.parametrize(("name", "architecture"), [("llama4", "Llama4"), ("mllama", "Mllama")])
@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_the_text_decoder_of_a_multimodal_folder_is_found_again(tmp_path: Path, name: str, architecture: str) -> None:
    """AutoModelForCausalLM takes the decoder out of the whole model; what it saves has the decoder's configuration,
    which it does not know for Mllama."""
    torch.manual_seed(0)
    whole = getattr(transformers, f"{architecture}ForConditionalGeneration")(small_config(name)).eval()
    whole.save_pretrained(tmp_path / "whole")
    policy = Wrapper.from_pretrained(tmp_path / "whole")
    assert type(policy.pretrained_model).__name__ == f"{architecture}ForCausalLM"
    with torch.no_grad():
        torch.testing.assert_close(outputs(policy)[0], whole(**inputs_of()).logits)
    policy.save_pretrained(tmp_path / "policy")
    torch.testing.assert_close(outputs(Wrapper.from_pretrained(tmp_path / "policy")), outputs(policy))


@pytest.mark.filterwarnings("ignore:.*holds no value head")
def test_an_adapter_on_a_multimodal_model_is_found_by_its_folder(tmp_path: Path) -> None:
    multimodal("Llava").pretrained_model.save_pretrained(tmp_path / "base")
    config = lora(target_modules=r".*language_model.*q_proj", fan_in_fan_out=False, init_lora_weights=False)
    before = Wrapper.from_pretrained(tmp_path / "base", peft_config=config)
    before.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(outputs(Wrapper.from_pretrained(tmp_path / "adapter")), outputs(before))


def test_what_is_no_language_model_is_still_refused(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    transformers.ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ViTModel has no language model head"):
        Wrapper.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["gpt2", "Llava"])
def test_a_model_object_brings_the_value_head_of_its_folder(tmp_path: Path, name: str) -> None:
    before = wrapped() if name == "gpt2" else multimodal(name)
    before.save_pretrained(tmp_path)
    model = type(before.pretrained_model).from_pretrained(tmp_path)
    torch.testing.assert_close(outputs(Wrapper.from_pretrained(model)), outputs(before))


def test_an_adapter_does_not_bring_the_value_head_of_its_base(tmp_path: Path) -> None:
    """The folder of the adapter has one of its own, which a PeftModel does not name."""
    from peft import PeftModel

    before = trained_adapter(tmp_path)
    wrapped().save_pretrained(tmp_path / "base")
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    model = Wrapper.from_pretrained(PeftModel.from_pretrained(base, str(tmp_path / "adapter")))
    head = load_file(tmp_path / "base" / "model.safetensors")["v_head.summary.weight"]
    assert not torch.equal(model.v_head.summary.weight, head)
    assert not torch.equal(model.v_head.summary.weight, before.v_head.summary.weight)


# --- value heads of other tools --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["v_head.", ""])
@pytest.mark.parametrize("file", ["value_head.safetensors", "value_head.bin"])
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_value_head_in_a_file_of_its_own(tmp_path: Path, kind: str, file: str, prefix: str) -> None:
    folder = tmp_path / kind
    if kind == "model":
        plain("gpt2").save_pretrained(folder)
    else:
        trained_adapter(tmp_path)
        (folder / "model.safetensors").unlink()
    tensors = {f"{prefix}summary.weight": torch.randn(1, WIDTH), f"{prefix}summary.bias": torch.randn(1)}
    save_file(tensors, folder / file) if file.endswith("safetensors") else torch.save(tensors, folder / file)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*holds no value head")
        model = Wrapper.from_pretrained(folder)
    assert torch.equal(model.v_head.summary.weight, tensors[f"{prefix}summary.weight"])
    assert torch.equal(model.v_head.summary.bias, tensors[f"{prefix}summary.bias"])


# --- heads of another shape ------------------------------------------------------------------------------------------


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 1))


@pytest.mark.parametrize("place", ["summary", "v_head"])
def test_a_head_of_several_layers(place: str) -> None:
    model = wrapped()
    head = mlp()
    setattr(model.v_head if place == "summary" else model, place, head)
    _, values = outputs(model)
    hidden = model.pretrained_model(**inputs_of(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(values, head(hidden).squeeze(-1).detach())


def test_a_head_of_several_layers_trains_and_is_loaded_into_one(tmp_path: Path) -> None:
    from tests.tiny import batch, with_value_head

    model = with_value_head("gpt2")
    model.v_head.summary = mlp(32)
    before = model.v_head.summary[0].weight.detach().clone()
    tiny_trainer(model).step(*batch())
    assert not torch.equal(model.v_head.summary[0].weight, before)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"value head.*has other layers.*load_state_dict"):
        Wrapper.from_pretrained(tmp_path)

    class Deep(AutoModelForCausalLMWithValueHead):
        def __init__(self, pretrained_model: Any, **kwargs: Any) -> None:
            super().__init__(pretrained_model, **kwargs)
            self.v_head.summary = mlp(32)

    loaded = Deep.from_pretrained(tmp_path)
    assert torch.equal(loaded.v_head.summary[0].weight, model.v_head.summary[0].weight)
