import pytest
import torch
from transformers.activations import ACT2FN

from tests import tiny
from trl_step.models.shortcuts.activations import fuse_activations


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_values_and_gradients_are_the_same(name):
    x = torch.linspace(-8, 8, 1001, requires_grad=True)
    holder = torch.nn.ModuleDict({"act": ACT2FN[name]})
    before = holder["act"](x)
    (gradient_before,) = torch.autograd.grad(before.sum(), x)
    assert fuse_activations(holder) == 1
    after = holder["act"](x)
    (gradient_after,) = torch.autograd.grad(after.sum(), x)
    # near -6 both lose digits: 1 + tanh(x) cancels there
    torch.testing.assert_close(after, before, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(gradient_after, gradient_before, rtol=1e-5, atol=2e-6)


def test_a_model_keeps_its_state_dict_and_its_logits():
    model = tiny.gpt2().eval()
    ids = torch.arange(4, 14).unsqueeze(0)
    keys, logits = list(model.state_dict()), model(ids).logits
    assert fuse_activations(model) == 2
    assert fuse_activations(model) == 0
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(ids).logits, logits)


def test_other_activations_are_left_alone():
    assert fuse_activations(tiny.llama()) == 0
