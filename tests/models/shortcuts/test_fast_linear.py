"""A whole model through the faster products: the same numbers, and nothing of it left behind."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from tests.tiny import batch, config, gpt2, tokenizer, trainer, weights, with_value_head
from trl_step import PPOTrainer, products
from trl_step.models.shortcuts.fast_linear import fast_dense_layers

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.fixture
def calls(monkeypatch):
    """How many products oneDNN was asked for, on whatever processor this is."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    made = []
    plain = products._onednn
    monkeypatch.setattr("trl_step.models.shortcuts.fast_linear.onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_ROWS", 1)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)
    monkeypatch.setattr(products, "_onednn", lambda *args: made.append(1) or plain(*args))
    return made


def steps(name):
    model = with_value_head(name)
    # Adam would make a step of a gradient that is 0 but for rounding
    one = PPOTrainer(config(), model, None, tokenizer(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    stats = [one.step(*batch(seed=seed)) for seed in range(2)]
    return weights(one.model), [{k: v for k, v in s.items() if not k.startswith(("time/", "perf/"))} for s in stats]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox", "opt", "t5", "bart"])
def test_steps_are_those_of_torchs_own_products(name, calls, monkeypatch):
    fast_weights, fast_stats = steps(name)
    assert calls
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    calls.clear()
    plain_weights, plain_stats = steps(name)
    assert not calls
    for key, weight in plain_weights.items():
        torch.testing.assert_close(fast_weights[key], weight, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(fast_stats, plain_stats, strict=True):
        for key, value in theirs.items():
            torch.testing.assert_close(torch.as_tensor(ours[key]), torch.as_tensor(value), rtol=1e-3, atol=1e-5)


def test_every_layer_is_given_back(calls):
    model = gpt2()
    before = model(IDS).logits
    assert not calls
    with fast_dense_layers(model):
        inside = model(IDS).logits
    assert calls
    torch.testing.assert_close(inside, before)
    assert all("forward" not in vars(module) for module in model.modules())
    calls.clear()
    with pytest.raises(KeyError), fast_dense_layers(model):
        raise KeyError("an error on the way")
    assert torch.equal(model(IDS).logits, before)
    assert not calls


def test_a_layer_that_somebody_replaced_keeps_its_forward(calls):
    model = gpt2()
    seen = []
    layer = model.transformer.h[0].mlp.c_fc
    own = layer.forward
    layer.forward = lambda input: seen.append(input.shape) or own(input)
    with fast_dense_layers(model):
        model(IDS)
    assert seen == [(2, 4, 32)]
    assert "forward" in vars(layer)


def test_a_compiled_model_is_compiled_once(calls):
    counter = CompileCounter()
    model = gpt2()
    expected = model(IDS).logits
    compiled = torch.compile(model, backend=counter)
    for _ in range(3):
        with fast_dense_layers(compiled):
            torch.testing.assert_close(compiled(IDS).logits, expected)
    assert counter.frame_count == 1
    assert not calls


def test_a_copy_made_inside_multiplies_with_its_own_weights(calls):
    model = gpt2()
    with fast_dense_layers(model):
        other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    assert other(IDS).logits.abs().max() == 0


def test_a_model_that_checkpoints_is_left_alone(calls):
    """Its layers run again in the backward pass, where they would multiply otherwise than in the forward pass."""
    model = gpt2().train()
    model.gradient_checkpointing_enable()
    with fast_dense_layers(model):
        loss = model(IDS).logits.sum()
    loss.backward()
    assert not calls
    model.gradient_checkpointing_disable()
    with fast_dense_layers(model):
        model(IDS)
    assert calls


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_that_its_owner_checkpoints(calls, reentrant):
    """No flag tells of it, and the layer runs again where this context has ended."""
    model = gpt2().train()
    expected = torch.autograd.grad(model(IDS).logits.square().sum(), list(model.parameters()))
    layer = model.transformer.h[0].mlp
    own = layer.forward
    layer.forward = lambda hidden: checkpoint(own, hidden, use_reentrant=reentrant)
    with fast_dense_layers(model):
        loss = model(IDS).logits.square().sum()
    loss.backward()
    assert calls
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-5)


def test_generation_goes_through_them(calls):
    one = trainer("gpt2")
    one.generate([torch.tensor([5, 6, 7])], max_new_tokens=2)
    assert calls
