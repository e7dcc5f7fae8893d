from contextlib import contextmanager

import pytest
import torch

from tests import tiny
from trl_step.models.shortcuts.tied_embedding import JoinedGradient, joined_where_tied
from trl_step.trainer.engine import forward

TIED = ("gpt2", "opt", "t5", "bart")


def gradients(trainer):
    """Of the first update, before the optimizer clears them."""
    kept = {}

    def keep(optimizer, *_):
        if not kept:
            kept.update((n, p.grad.clone()) for n, p in trainer.model.named_parameters() if p.grad is not None)

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    trainer.step(*tiny.batch())
    return kept


@contextmanager
def apart(model, joined):
    """The embeddings go their own ways."""
    yield


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"forward_tokens": 24}], ids=str)
@pytest.mark.parametrize("name", TIED)
def test_gradients_are_those_of_autograd_alone(name, options, monkeypatch):
    ours = gradients(tiny.trainer(name, **options))
    monkeypatch.setattr(forward, "joined_where_tied", apart)
    theirs = gradients(tiny.trainer(name, **options))
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "uses"), [("gpt2", 1), ("opt", 1), ("t5", 2)])
def test_no_second_gradient_of_the_vocabulary_is_made(name, uses, monkeypatch):
    trainer = tiny.trainer(name)
    added = []
    add = JoinedGradient.add
    monkeypatch.setattr(JoinedGradient, "add", lambda *args: added.append(add(*args)) or added[-1])
    trainer.step(*tiny.batch())
    mini_batches = 8
    assert added == [True] * mini_batches * uses


@pytest.mark.parametrize("other_use", [False, True])
def test_another_use_of_the_weight_is_not_lost(other_use):
    """2 of the head, 3 for each of the tokens, and 5 of the other use, by hand."""
    weight = torch.nn.Parameter(torch.zeros(4, 2))
    embedding = torch.nn.Embedding(4, 2, _weight=weight)
    embedding.weight = weight
    joined = JoinedGradient()
    places = []

    class Head(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight):
            return hidden.new_zeros(())

        @staticmethod
        def backward(ctx, upstream):
            gradient = torch.full((4, 2), 2.0)
            joined.put(gradient)
            places.append(gradient.data_ptr())
            return torch.full((3, 2), 3.0), gradient

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = embedding
            self.head = torch.nn.Linear(2, 4, bias=False)
            self.head.weight = weight

        def get_output_embeddings(self):
            return self.head

    with joined_where_tied(Model(), joined):
        hidden = embedding(torch.tensor([1, 1, 3]))
    if other_use:
        hidden = hidden + 0 * hidden.detach() + (weight[2] - weight[2].detach()) * 5 / 9
    Head.apply(hidden, weight).backward()
    expected = torch.tensor([[2.0, 2.0], [8.0, 8.0], [7.0, 7.0] if other_use else [2.0, 2.0], [5.0, 5.0]])
    torch.testing.assert_close(weight.grad, expected)
    assert weight.grad.data_ptr() == places[0], "a copy was made"
    Head.apply(embedding(torch.tensor([0, 0, 0])), weight).backward()
    expected = expected + 2.0
    expected[0] += 9.0
    torch.testing.assert_close(weight.grad, expected)


def test_padding_does_not_train():
    model = tiny.gpt2()
    embedding = model.get_input_embeddings()
    embedding.padding_idx = 4
    with joined_where_tied(model, JoinedGradient()):
        embedding(torch.tensor([[4, 5, 4]])).sum().backward()
    assert embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [5]


def test_untied_embeddings_are_left_alone_and_tied_ones_given_back():
    llama, gpt2 = tiny.llama(), tiny.gpt2()
    with joined_where_tied(llama, JoinedGradient()):
        assert "forward" not in vars(llama.get_input_embeddings())
    with joined_where_tied(gpt2, JoinedGradient()):
        assert "forward" in vars(gpt2.get_input_embeddings())
    with pytest.raises(ArithmeticError), joined_where_tied(gpt2, JoinedGradient()):
        raise ArithmeticError
    assert "forward" not in vars(gpt2.get_input_embeddings())
