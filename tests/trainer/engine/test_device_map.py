"""Models whose layers are on several devices: what goes where, on fake tensors that know their devices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode

from tests import tiny
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.head.tiles import OutputHead
from trl_step.models.inner_model import spans_devices
from trl_step.models.shortcuts.frozen_trunk import find_cut
from trl_step.trainer.batches.rollout import Piece, Precomputed
from trl_step.trainer.engine import forward as forward_module
from trl_step.trainer.engine.forward import Slopes, TokenForward

HOME, OTHER = torch.device("cpu"), torch.device("meta")
PLACES = {
    "layers apart": {"embed_tokens": HOME, "rotary_emb": HOME, "layers.0": HOME, "layers.1": OTHER, "norm": OTHER,
                     "lm_head": OTHER},
    "head on the first": {"embed_tokens": HOME, "rotary_emb": HOME, "layers.0": HOME, "layers.1": OTHER,
                          "norm": OTHER, "lm_head": HOME},
    "all on the second": {"embed_tokens": OTHER, "rotary_emb": OTHER, "layers.0": OTHER, "layers.1": OTHER,
                          "norm": OTHER, "lm_head": OTHER},
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeTensorMode]:
    # there is no autocast for the second device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def move(value: Any, device: torch.device) -> Any:
    """Tensors in arguments of a module, as accelerate's hooks move them."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    return tuple(move(one, device) for one in value) if isinstance(value, tuple) else value


def place(module: torch.nn.Module, device: torch.device) -> None:
    """Put a module on a device; its inputs follow when its forward begins, after its hooks."""
    for one in module.modules():
        for name, parameter in one.named_parameters(recurse=False):
            setattr(one, name, torch.nn.Parameter(torch.empty(parameter.shape, device=device)))
        for name, buffer in one.named_buffers(recurse=False):
            setattr(one, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
    run = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run(*move(args, device), **{name: move(value, device) for name, value in kwargs.items()})

    module.forward = forward  # type: ignore[method-assign]


def placed(places: dict[str, torch.device]) -> Any:
    model = tiny.llama()
    for name, device in places.items():
        place(model.get_submodule(name if name == "lm_head" else f"model.{name}"), device)
    wrapped = AutoModelForCausalLMWithValueHead.from_pretrained(model)
    place(wrapped.v_head, places["lm_head"])
    wrapped.supported_modules, model.hf_device_map = (), places  # the parameters of a fake module stay where they are
    wrapped.post_init({})
    return wrapped


def forward_of(models: list[Any], trainer: PPOTrainer) -> TokenForward:
    """Its probes look at numbers, which fake tensors have none of."""
    forward = TokenForward(lambda one: one, trainer._layout)
    for model in models:
        head = OutputHead(model.pretrained_model.lm_head.weight)
        forward._heads[id(model)] = forward_module._HeadAccess(True, head)
    return forward


def at_home(piece: Piece) -> Piece:
    """The same positions, of fake tensors."""

    def there(tensor: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=HOME)

    batch, counted = piece.batch, piece.counted
    inputs = {name: there(tensor) for name, tensor in batch.inputs.items()}
    counted = counted._replace(flat=there(counted.flat), in_inputs=there(counted.in_inputs))
    return piece._replace(
        batch=batch._replace(inputs=inputs, mask=there(batch.mask)), counted=counted, labels=there(piece.labels)
    )


@pytest.fixture(scope="module")
def trainer() -> PPOTrainer:
    return tiny.trainer("llama")


@pytest.fixture(scope="module")
def piece(trainer: PPOTrainer) -> Piece:
    given = trainer._checked(*tiny.batch()[:2], torch.zeros(8), None, Precomputed())
    return trainer._layout.piece(trainer._batch(given))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("couples", [False, True])
def test_what_a_mini_batch_gives_comes_home(
    where: str, couples: bool, trainer: PPOTrainer, piece: Piece, fake: FakeTensorMode
) -> None:
    model, piece = placed(PLACES[where]), at_home(piece)
    forward = forward_of([model], trainer)
    numbers = torch.zeros(len(piece.labels), device=HOME)
    outputs = forward.counted(model, piece, Slopes(lambda rows, found: numbers[rows] * found, numbers, couples))
    assert {each.device for each in outputs} == {HOME}
    # a backward pass would look at numbers; the head's gradients are formed before it
    node = outputs.anchor.grad_fn
    while not hasattr(node, "gradients"):
        node = node.next_functions[0][0]
    of_hidden, of_weight, _ = node.gradients
    assert of_hidden.device == of_weight._sums[0].device == model.pretrained_model.lm_head.weight.device
    assert outputs.values.requires_grad


@pytest.mark.parametrize("where", PLACES)
def test_what_both_models_say_comes_home(where: str, trainer: PPOTrainer, piece: Piece, fake: FakeTensorMode) -> None:
    """The reference lies elsewhere."""
    model, reference, piece = placed(PLACES[where]), placed(PLACES["layers apart"]), at_home(piece)
    forward = forward_of([model, reference], trainer)
    with torch.no_grad():
        assert forward.counted(model, piece).logprobs.device == HOME
        sides = [forward.states(one, piece) for one in (model, reference)]
        assert {each.device for each in forward.divergence(*sides, piece.labels)} == {HOME}
        assert sides[0].values.device == HOME
        whole = forward.everything(model, piece.batch.inputs, False, 4)
        assert {each.device for each in whole} == {HOME}


def test_shortcuts_that_move_tensors_themselves_are_left_out(trainer: PPOTrainer) -> None:
    model = tiny.with_value_head("llama")
    for parameter in (*model.pretrained_model.model.layers[0].parameters(),
                      *model.pretrained_model.model.embed_tokens.parameters()):  # fmt: skip
        parameter.requires_grad_(False)
    assert find_cut(model.pretrained_model) is not None
    assert trainer._forward.row_support(model).prompts_once
    model.pretrained_model.hf_device_map = {"model": 0, "lm_head": 1}
    assert spans_devices(model.pretrained_model)
    assert find_cut(model.pretrained_model) is None
    assert not trainer._forward.row_support(model).prompts_once
    model.pretrained_model.hf_device_map = {"": 0}
    assert trainer._forward.row_support(model).prompts_once, "a map to one device spreads nothing"


def test_a_step_of_a_model_that_accelerate_dispatched() -> None:
    """On a CPU, with the hooks of accelerate around every layer: the numbers are those without."""
    found = []
    for dispatched in (False, True):
        torch.manual_seed(0)
        model = tiny.llama()
        if dispatched:
            places = dict.fromkeys((f"model.{name}" for name in list(PLACES["layers apart"])[:-1]), "cpu")
            model = dispatch_model(model, {**places, "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
            assert hasattr(model.model.layers[0], "_hf_hook")
        torch.manual_seed(1)
        wrapped = AutoModelForCausalLMWithValueHead.from_pretrained(model)
        ours = tiny.trainer(wrapped)
        stats = ours.step(*tiny.batch())
        found.append((stats["objective/kl"], stats["ppo/loss/total"], tiny.weights(ours.model)))
    assert found[0][:2] == found[1][:2]
    for name, weight in found[0][2].items():
        assert torch.equal(weight, found[1][2][name]), name
