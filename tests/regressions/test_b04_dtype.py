"""Row B4: transformers 5 loads the dtype of the file; weights that are trained are float32 unless the user says so."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny_models import lora, plain, trained_adapter, wrapped, wrapper_of


@pytest.fixture
def folder(tmp_path: Path) -> str:
    plain("gpt2").to(torch.bfloat16).save_pretrained(tmp_path)
    return str(tmp_path)


def load(source: Any, name: str = "gpt2", **kwargs: Any) -> tuple[torch.dtype, list[str]]:
    """The dtype of the weights, and what is warned of that concerns it."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = wrapper_of(name).from_pretrained(source, **kwargs)
    dtypes = {p.dtype for p in model.pretrained_model.parameters()}
    assert len(dtypes) == 1
    assert model.v_head.summary.weight.dtype == torch.float32
    messages = [str(w.message) for w in seen]
    return dtypes.pop(), [text for text in messages if "dtype" in text and "no value head" not in text]


def test_float32_by_default_and_one_warning_that_names_both(folder: str) -> None:
    dtype, messages = load(folder)
    assert dtype == torch.float32
    assert len(messages) == 1
    assert "has bfloat16" in messages[0]
    assert "loaded as float32" in messages[0]
    assert "dtype=torch.bfloat16" in messages[0]


@pytest.mark.parametrize("argument", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("wish", [torch.bfloat16, "bfloat16", torch.float16, torch.float32, "auto"])
def test_the_users_word_is_kept_without_a_warning(folder: str, argument: str, wish: Any) -> None:
    want = {"auto": torch.bfloat16, "bfloat16": torch.bfloat16}.get(wish, wish)
    assert load(folder, **{argument: wish}) == (want, [])


def test_two_words_that_differ_are_refused(folder: str) -> None:
    assert load(folder, dtype=torch.float16, torch_dtype=torch.float16) == (torch.float16, [])
    with pytest.raises(ValueError, match=r"dtype=torch\.float32 and torch_dtype=torch\.float16"):
        load(folder, dtype=torch.float32, torch_dtype=torch.float16)


def test_a_float32_file_is_nothing_to_warn_of(tmp_path: Path) -> None:
    plain("gpt2").save_pretrained(tmp_path)
    assert load(str(tmp_path)) == (torch.float32, [])


def test_a_pickle_file_is_judged_by_its_configuration(tmp_path: Path) -> None:
    model = plain("gpt2").to(torch.float16)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    dtype, messages = load(str(tmp_path))
    assert dtype == torch.float32
    assert "float16" in messages[0]


def test_nested_configurations(tmp_path: Path) -> None:
    plain("gemma3").to(torch.bfloat16).save_pretrained(tmp_path)
    dtype, messages = load(str(tmp_path), "gemma3")
    assert dtype == torch.float32
    assert len(messages) == 1


def test_with_adapters(tmp_path: Path, folder: str) -> None:
    dtype, messages = load(folder, peft_config=lora())
    assert (dtype, len(messages)) == (torch.float32, 1)
    trained_adapter(tmp_path / "t")
    plain("gpt2").to(torch.bfloat16).save_pretrained(tmp_path / "t" / "base")
    dtype, messages = load(str(tmp_path / "t" / "adapter"))
    assert (dtype, len(messages)) == (torch.float32, 1)


def test_a_small_update_moves_the_weights(folder: str) -> None:
    """What the row is about: in bfloat16 this step would be rounded away."""
    model = wrapper_of("gpt2").from_pretrained(folder)
    weight = model.pretrained_model.transformer.ln_f.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1e-5)
    assert not torch.equal(weight, before)


def test_a_model_object_in_16_bits_is_trained_as_it_is_with_a_warning() -> None:
    dtype, messages = load(plain("gpt2").to(torch.bfloat16))
    assert dtype == torch.bfloat16
    assert len(messages) == 1
    assert "bfloat16" in messages[0]
    assert "float32" in messages[0]
    assert load(plain("gpt2").to(torch.bfloat16).requires_grad_(False)) == (torch.bfloat16, [])
    assert load(plain("gpt2")) == (torch.float32, [])


def test_a_model_object_follows_an_explicit_dtype() -> None:
    assert load(plain("gpt2").to(torch.bfloat16), dtype=torch.float32) == (torch.float32, [])
    assert load(plain("gpt2"), torch_dtype="float16") == (torch.float16, [])
    assert load(wrapped().pretrained_model, dtype="auto") == (torch.float32, [])
