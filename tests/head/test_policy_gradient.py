import pytest
import torch

from tests.head.heads import HEADS, D, N, V, make, plain_logits
from trl_step.algorithms.losses.policy import clipped_policy_losses
from trl_step.algorithms.objective import Minibatch, Objective
from trl_step.head.logprobs import exact_divergence, logprobs_of_logits, token_logprobs
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead

pytestmark = pytest.mark.usefixtures("small_chunks")

OBJECTIVE = Objective(
    lambda logprobs, batch: clipped_policy_losses(logprobs, batch.old_logprobs, batch.advantages, 0.2), None, 0.1
)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", HEADS)
def test_logprobs_and_entropy_against_the_definition(kind, temperature):
    hidden, labels, head = make(kind)
    log_p = torch.log_softmax(plain_logits(hidden, head) / temperature, dim=-1).detach()
    logprobs = token_logprobs(hidden, labels, head, temperature)
    torch.testing.assert_close(logprobs, log_p[torch.arange(N), labels])
    assert not logprobs.requires_grad
    trained = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: chunk, temperature)
    assert torch.equal(trained.logprobs, logprobs)
    torch.testing.assert_close(trained.entropy, -(log_p.exp() * log_p).sum(-1))


def test_entropy_where_it_is_small_and_the_logits_are_large():
    """The expected logit is taken relative to the label's: logits around 1000 cost no digits."""
    weight = torch.tensor([[1000.0, 0.0], [1000.0, 1.0], [1000.0, -30.0]])
    hidden = torch.tensor([[1.0, 2.0], [1.0, 0.0]])
    log_p = torch.log_softmax(hidden.double() @ weight.double().T, dim=-1)
    rows = policy_gradient_rows(hidden, torch.tensor([1, 0]), OutputHead(weight), lambda rows, chunk: chunk)
    torch.testing.assert_close(rows.entropy, -(log_p.exp() * log_p).sum(-1).float(), rtol=0, atol=2e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_against_autograd(kind, temperature):
    hidden, labels, head = make(kind)
    old, advantages, weights = torch.randn(N) - 3, torch.randn(N), torch.rand(N)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]

    logprobs = logprobs_of_logits(plain_logits(hidden, head), labels, temperature)
    loss = (clipped_policy_losses(logprobs, old, advantages, 0.2).losses * weights).sum() * 3.0
    expected = torch.autograd.grad(loss, leaves)

    def gradient_of(rows, chunk):
        return OBJECTIVE.slope(chunk, Minibatch(weights[rows], weights[rows], old[rows], advantages[rows]))

    result = policy_gradient_rows(hidden, labels, head, gradient_of, temperature)
    assert result.anchor.item() == 0.0
    torch.testing.assert_close(result.logprobs, logprobs.detach())
    torch.testing.assert_close(torch.autograd.grad(result.anchor * 3.0, leaves), expected, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_against_finite_differences(kind):
    """In float64, of a smooth loss: the sum of w * logprob² over all rows.

    One random direction per tensor: the slope of the loss along it is the gradient's product with it, to which every
    element contributes.
    """
    hidden, labels, head = make(kind, torch.float64)
    weights = torch.rand(N, dtype=torch.float64)

    def loss(h, w):
        return (weights * token_logprobs(h, labels, head._replace(weight=w)) ** 2).sum()

    rows = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: 2 * weights[rows] * chunk)
    of_hidden, of_weight = torch.autograd.grad(rows.anchor, (hidden, head.weight))
    for gradient, along in (
        (of_hidden, lambda step, direction: loss(hidden + step * direction, head.weight)),
        (of_weight, lambda step, direction: loss(hidden, head.weight + step * direction)),
    ):
        direction = torch.randn_like(gradient)
        slope = (along(1e-6, direction) - along(-1e-6, direction)) / 2e-6
        torch.testing.assert_close((gradient * direction).sum(), slope.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("excluded", [slice(5, 7), slice(0, 18)], ids=["two tokens", "whole tiles"])
def test_tokens_that_the_bias_excludes(excluded):
    hidden, labels, head = make("bias")
    with torch.no_grad():
        head.bias[excluded] = -torch.inf
    labels = labels % 5 + 18
    logits = plain_logits(hidden, head)
    log_p = torch.log_softmax(logits, dim=-1).detach()
    expected = torch.autograd.grad(logprobs_of_logits(logits, labels).sum(), (hidden, head.weight))
    rows = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: torch.ones_like(chunk))
    torch.testing.assert_close(rows.logprobs, log_p[torch.arange(N), labels])
    torch.testing.assert_close(rows.entropy, -torch.special.xlogy(log_p.exp(), log_p.exp()).sum(-1))
    torch.testing.assert_close(torch.autograd.grad(rows.anchor, (hidden, head.weight)), expected)
    divergence = exact_divergence(hidden, hidden, labels, head, head).divergence
    torch.testing.assert_close(divergence, torch.zeros(N))


def test_gradients_of_likely_tokens_under_autocast():
    """A label's p - 1 stays float32: at p = 0.99 a bfloat16 would lose a third of it."""
    torch.manual_seed(0)
    weight, labels = torch.randn(V, 4 * D).bfloat16().float(), torch.randint(V, (N,))
    hidden = (8.0 * weight[labels] / weight[labels].square().sum(dim=1, keepdim=True)).bfloat16().float()
    exact = hidden.double().requires_grad_()
    log_p = torch.log_softmax(exact @ weight.double().T, dim=1)[torch.arange(N), labels]
    assert 0.98 < log_p.exp().median() < 0.999
    log_p.sum().backward()
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = policy_gradient_rows(hidden, labels, OutputHead(weight), lambda rows, chunk: torch.ones_like(chunk))
    rows.anchor.backward()
    error = (hidden.grad.double() - exact.grad).norm(dim=1) / exact.grad.norm(dim=1)
    assert error.max() < 0.08


def test_a_frozen_head_gets_no_gradient():
    hidden, labels, head = make("plain")
    frozen = head._replace(weight=head.weight.detach())
    policy_gradient_rows(hidden, labels, frozen, lambda rows, chunk: torch.ones_like(chunk)).anchor.backward()
    assert hidden.grad is not None
    assert frozen.weight.grad is None


def test_under_autocast_the_product_is_bfloat16_and_the_gradients_float32():
    hidden, labels, head = make("plain")
    exact = token_logprobs(hidden, labels, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: torch.ones_like(chunk))
    rows.anchor.backward()
    assert head.weight.grad.dtype == hidden.grad.dtype == rows.logprobs.dtype == torch.float32
    assert not torch.equal(rows.logprobs, exact)
    torch.testing.assert_close(rows.logprobs, exact, rtol=2e-2, atol=5e-2)  # 8 bits of mantissa


def test_under_autocast_the_chunks_of_the_heads_gradient_are_added_up():
    hidden, labels, head = make("plain")
    expected = torch.autograd.grad(logprobs_of_logits(plain_logits(hidden, head), labels).sum(), head.weight)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: torch.ones_like(chunk))
    (gradient,) = torch.autograd.grad(rows.anchor, head.weight)
    assert (gradient - expected).norm() < 2e-2 * expected.norm()  # 8 bits of mantissa


@pytest.mark.parametrize("kind", ["plain", "all"])
def test_float16_keeps_slopes_that_are_below_its_smallest_number(kind):
    """2⁻¹² of a mini-batch's 4096 tokens, times the 1/23 of a token, times a hidden state of 2⁻¹⁰: below 2⁻²⁴."""
    hidden, labels, head = make(kind)
    with torch.no_grad():
        hidden.mul_(2.0**-10)
    leaves = [hidden, head.weight] + ([head.bias] if kind == "all" else [])
    slopes = 2.0**-12 * torch.randn(N)
    expected = torch.autograd.grad((logprobs_of_logits(plain_logits(hidden, head), labels) * slopes).sum(), leaves)
    with torch.autocast("cpu", dtype=torch.float16):
        rows = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: slopes[rows])
    for result, exact in zip(torch.autograd.grad(rows.anchor, leaves), expected, strict=True):
        assert (result - exact).norm() < 2e-3 * exact.norm()  # 11 bits of mantissa


def test_autocast_leaves_float64_alone():
    hidden, labels, head = make("plain", torch.float64)
    exact = token_logprobs(hidden, labels, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(token_logprobs(hidden, labels, head), exact)


@pytest.mark.parametrize("again", [{}, {"create_graph": True}], ids=["twice", "of the gradient"])
def test_the_gradient_is_handed_out_once(again):
    hidden, labels, head = make("plain")
    anchor = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: torch.ones_like(chunk)).anchor
    factor = torch.tensor(2.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(anchor * factor, hidden, retain_graph=True, **again)
    before = gradient.detach().clone()
    with pytest.raises(RuntimeError, match="differentiate twice" if again else "earlier backward pass"):
        gradient.sum().backward() if again else anchor.backward()
    assert torch.equal(gradient, before)


def test_no_entropy_is_below_zero():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(N, D), 1e4 * torch.randn(V, D), torch.randint(V, (N,))
    rows = policy_gradient_rows(hidden, labels, OutputHead(weight), lambda rows, chunk: torch.ones_like(chunk))
    assert (rows.entropy >= 0).all()
    assert rows.entropy.max() < 0.1


def test_no_rows_at_all():
    hidden, labels, head = make("bias")
    rows = policy_gradient_rows(hidden[:0], labels[:0], head, lambda rows, chunk: chunk)
    rows.anchor.backward()
    assert rows.logprobs.shape == rows.entropy.shape == (0,)
    assert head.weight.grad.abs().sum() == 0


def test_nothing_of_vocabulary_size_is_kept_for_the_backward_pass():
    hidden, labels, head = make("plain")
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        anchor = policy_gradient_rows(hidden, labels, head, lambda rows, chunk: chunk).anchor
    gradients = [g.numel() for g in anchor.grad_fn.gradients if g is not None]
    assert gradients == [N * D, V * D]
    assert all(size < N * V for size in sizes)
    anchor.backward()
    assert anchor.grad_fn.gradients is None
