from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from tests.models.tiny_models import LAYERS, inputs_of, lora, plain, same_state, wrapped
from trl_step.models import create_reference_model


def names_of_shared(model, reference) -> list[str]:
    other = dict(reference.named_parameters())
    return [name for name, parameter in model.named_parameters() if parameter is other[name]]


def test_a_whole_copy_is_equal_frozen_independent_and_in_eval_mode() -> None:
    model = wrapped().train()
    reference = create_reference_model(model)
    assert same_state(model, reference)
    assert names_of_shared(model, reference) == []
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    before = reference(**inputs_of())[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(reference(**inputs_of())[0], before)


def test_tied_weights_stay_tied_in_the_copy() -> None:
    reference = create_reference_model(wrapped())
    assert reference.pretrained_model.lm_head.weight is reference.pretrained_model.transformer.wte.weight


def test_the_copys_state_dict_reaches_the_copy_alone() -> None:
    model = wrapped()
    reference = create_reference_model(model)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in reference.state_dict().items()}
    reference.load_state_dict(zeros)
    assert reference.v_head.summary.weight.abs().sum() == 0
    assert model.v_head.summary.weight.abs().sum() > 0


def test_an_adapter_model_can_be_copied() -> None:
    model = wrapped(peft_config=lora())
    reference = create_reference_model(model)
    with model.reference_adapter(), reference.reference_adapter():
        assert torch.equal(model(**inputs_of())[0], reference(**inputs_of())[0])


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("gpt2", None),
        ("gpt_neox", None),
        ("llama", None),
        ("opt_projected", None),
        ("gemma3", None),
        ("t5", None),
        ("bart", None),
        ("bloom", "transformer.h.{layer}"),
        ("gpt2", "h.{layer}."),
    ],
)
def test_layers_in_front_are_shared(name: str, pattern: str | None) -> None:
    model = wrapped(name)
    reference = create_reference_model(model, num_shared_layers=1, pattern=pattern)
    shared = names_of_shared(model, reference)
    assert shared
    assert any(".0." in each for each in shared)
    layer_one = re.compile(r"(h|layers|block)\.1\.")
    assert not [each for each in shared if layer_one.search(each) and "encoder" not in each]
    frozen = [each for each, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == shared
    assert torch.equal(model(**inputs_of(name))[0], reference(**inputs_of(name))[0])


def test_no_layer_but_the_embeddings() -> None:
    model = wrapped()
    shared = names_of_shared(model, create_reference_model(model, num_shared_layers=0))
    assert shared == ["pretrained_model.transformer.wte.weight", "pretrained_model.transformer.wpe.weight"]


def test_layer_one_is_not_layer_ten() -> None:
    config = plain("gpt2").config
    config.n_layer = 12
    model = type(plain("gpt2"))(config)
    shared = names_of_shared(model, create_reference_model(model, num_shared_layers=11))
    assert any("h.10." in each for each in shared)
    assert not any("h.11." in each for each in shared)


def test_layers_in_any_order() -> None:
    """Layer 1 is looked for by its whole name, not by its beginning."""
    model = nn.ModuleDict({"h": nn.ModuleDict({number: nn.Linear(1, 1) for number in ("0", "10", "1")})})
    shared = names_of_shared(model, create_reference_model(model, num_shared_layers=1, pattern="h.{layer}"))
    assert shared == ["h.0.weight", "h.0.bias", "h.10.weight", "h.10.bias"]


@pytest.mark.parametrize(("layers", "pattern"), [(LAYERS, None), (1, "no.such.{layer}"), (-1, None)])
def test_a_layer_that_is_not_there_is_named(layers: int, pattern: str | None) -> None:
    model = wrapped()
    with pytest.raises(ValueError, match=rf"belongs to layer {layers} under .*\{{layer\}}"):
        create_reference_model(model, num_shared_layers=layers, pattern=pattern)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_that_are_spread_over_processes_cannot_be_copied() -> None:
    model = wrapped()
    next(model.parameters()).ds_id = 0  # the mark of DeepSpeed ZeRO-3
    with pytest.raises(ValueError, match=r"ZeRO-3\). Call it before the trainer is built"):
        create_reference_model(model)
