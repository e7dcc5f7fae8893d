"""Row C6: only the last hidden state is kept; the states of the other layers are free as soon as they are used."""

from __future__ import annotations

import weakref

import pytest
import torch

from tests.models.tiny_models import inputs_of, some_rows, wrapped

LAYERS_OF = {
    "gpt2": lambda model: model.transformer.h,
    "llama": lambda model: model.model.layers,
    "t5": lambda model: model.decoder.block,
    "bart": lambda model: model.model.decoder.layers,
}


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("name", LAYERS_OF)
def test_inner_states_are_freed(name: str, by_rows: bool) -> None:
    model, inputs = wrapped(name), inputs_of(name)
    states: list[weakref.ref] = []
    alive_at_the_head: list[bool] = []

    def note(_module: torch.nn.Module, _arguments: object, output: torch.Tensor | tuple) -> None:
        states.append(weakref.ref(output if isinstance(output, torch.Tensor) else output[0]))

    # the last one may be the decoder's result itself
    def look(_module: torch.nn.Module, _arguments: object) -> None:
        alive_at_the_head.extend(state() is not None for state in states[:-1])

    for layer in LAYERS_OF[name](model.pretrained_model):
        layer.register_forward_hook(note)
    model.pretrained_model.get_output_embeddings().register_forward_pre_hook(look)
    with torch.no_grad():
        model(**inputs, rows=some_rows(inputs) if by_rows else None)
    assert alive_at_the_head
    assert not any(alive_at_the_head)


def test_the_model_is_not_asked_for_all_states() -> None:
    model = wrapped()
    asked: list[object] = []
    model.pretrained_model.register_forward_pre_hook(
        lambda _module, _arguments, kwargs: asked.append(kwargs.get("output_hidden_states")), with_kwargs=True
    )
    model(**inputs_of())
    assert asked == [None]
