import pytest
import torch

from tests.head.heads import HEADS, D, N, V, make, plain_logits
from trl_step.algorithms.losses.policy import Clip, clipped_policy_losses
from trl_step.algorithms.objective import Minibatch, Objective
from trl_step.head.logprobs import exact_divergence, logprobs_of_logits, token_logprobs
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead

pytestmark = pytest.mark.usefixtures("small_chunks")

OBJECTIVE = Objective(
    lambda logprobs, batch: clipped_policy_losses(logprobs, batch.old_logprobs, batch.advantages, Clip(0.2)), None, 0.1
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
    loss = (clipped_policy_losses(logprobs, old, advantages, Clip(0.2)).losses * weights).sum() * 3.0
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
    of_hidden, of_weight, of_bias = anchor.grad_fn.gradients
    assert (of_hidden.numel(), sum(part.numel() for part in of_weight._sums), of_bias) == (N * D, V * D, None)
    assert all(size < N * V for size in sizes)
    anchor.backward()
    assert anchor.grad_fn.gradients is None


# --- a loss that depends on entropies ----------------------------------------------------------------------------


def with_entropies(hidden, labels, head, slopes, entropy_slopes, temperature=1.0):
    """Gradients of hidden, weight and bias by autograd, of sum of slopes * logprob + entropy_slopes * entropy."""
    log_p = torch.log_softmax(plain_logits(hidden, head) / temperature, dim=-1)
    entropy = -torch.where(log_p.isneginf(), 0.0, log_p.exp() * log_p.clamp(min=-1e30)).sum(-1)
    loss = (slopes * log_p[torch.arange(len(labels)), labels] + entropy_slopes * entropy).sum()
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None and leaf.requires_grad]
    return leaves, torch.autograd.grad(loss, leaves), entropy.detach()


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("slopes", ["both", "no log-probs", "some of each"])
def test_entropy_gradients_against_autograd(kind, temperature, slopes):
    hidden, labels, head = make(kind)
    a, b = torch.randn(N), torch.randn(N)
    if slopes == "no log-probs":
        a = torch.zeros(N)
    elif slopes == "some of each":  # rows with neither as well
        a, b = a * (torch.arange(N) % 2), b * (torch.arange(N) % 3 == 0)
    leaves, expected, entropy = with_entropies(hidden, labels, head, a, b, temperature)
    rows = policy_gradient_rows(hidden, labels, head, lambda at, _: a[at], temperature, entropy_gradient=b)
    torch.testing.assert_close(rows.entropy, entropy)
    torch.testing.assert_close(rows.logprobs, token_logprobs(hidden, labels, head, temperature))
    # as in `test_gradients_against_autograd`: sums over 37 rows of order 1, in another order
    torch.testing.assert_close(torch.autograd.grad(rows.anchor * 3.0, leaves), [3.0 * g for g in expected],
                               rtol=5e-6, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_entropy_gradients_in_float64_to_the_last_digits(kind):
    hidden, labels, head = make(kind, torch.float64)
    a, b = torch.randn(N, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    leaves, expected, _ = with_entropies(hidden, labels, head, a, b)
    rows = policy_gradient_rows(hidden, labels, head, lambda at, _: a[at], entropy_gradient=b)
    torch.testing.assert_close(torch.autograd.grad(rows.anchor, leaves), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", HEADS)
def test_slopes_of_zero_move_nothing(kind):
    hidden, labels, head = make(kind)
    zeros = torch.zeros(N)
    rows = policy_gradient_rows(hidden, labels, head, lambda at, _: zeros[at], entropy_gradient=zeros)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    for gradient in torch.autograd.grad(rows.anchor, leaves):
        assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("kind", HEADS)
def test_entropy_slopes_of_zero_are_none(kind):
    """Up to rounding: another order of products."""
    hidden, labels, head = make(kind)
    a = torch.randn(N)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
    without = policy_gradient_rows(hidden, labels, head, lambda at, _: a[at])
    with_zeros = policy_gradient_rows(hidden, labels, head, lambda at, _: a[at], entropy_gradient=torch.zeros(N))
    torch.testing.assert_close(with_zeros.logprobs, without.logprobs)
    torch.testing.assert_close(with_zeros.entropy, without.entropy)
    pairs = (torch.autograd.grad(rows.anchor, leaves) for rows in (with_zeros, without))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other, rtol=5e-6, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_one_row_with_an_entropy_slope(kind):
    hidden, labels, head = make(kind)
    one = hidden[:1].detach().requires_grad_()
    a, b = torch.tensor([0.5]), torch.tensor([-0.1])
    leaves, expected, entropy = with_entropies(one, labels[:1], head, a, b)
    rows = policy_gradient_rows(one, labels[:1], head, lambda at, _: a[at], entropy_gradient=b)
    torch.testing.assert_close(rows.entropy, entropy)
    torch.testing.assert_close(torch.autograd.grad(rows.anchor, leaves), expected, rtol=5e-6, atol=1e-6)


def test_no_rows_with_entropy_slopes():
    hidden, labels, head = make("bias")
    rows = policy_gradient_rows(hidden[:0], labels[:0], head, lambda at, x: x, entropy_gradient=torch.zeros(0))
    rows.anchor.backward()
    assert head.weight.grad.count_nonzero() == 0


@pytest.mark.parametrize("excluded", [slice(5, 7), slice(0, 18)], ids=["two tokens", "whole tiles"])
def test_entropy_gradients_where_the_bias_excludes_tokens(excluded):
    hidden, labels, head = make("bias")
    with torch.no_grad():
        head.bias[excluded] = -torch.inf
    labels, a, b = labels % 5 + 18, torch.randn(N), torch.randn(N)
    # autograd meets 0 * inf at what is excluded, so the plain path leaves it out of the vocabulary
    kept = torch.ones(V).bool()
    kept[excluded] = False
    # bit by bit the same tokens: renumbered
    number = kept.long().cumsum(0) - 1
    weight = head.weight.detach()[kept].requires_grad_()
    small = OutputHead(weight, bias=head.bias.detach()[kept].requires_grad_())
    leaves, expected, entropy = with_entropies(hidden, number[labels], small, a, b)
    rows = policy_gradient_rows(hidden, labels, head, lambda at, _: a[at], entropy_gradient=b)
    torch.testing.assert_close(rows.entropy, entropy)
    of_hidden, of_weight, of_bias = torch.autograd.grad(rows.anchor, (hidden, head.weight, head.bias))
    found = of_hidden, of_weight[kept], of_bias[kept]
    torch.testing.assert_close(found, tuple(expected), rtol=5e-6, atol=1e-5)
    assert of_weight[excluded].count_nonzero() == of_bias[excluded].count_nonzero() == 0
    assert len(leaves) == 3


@pytest.mark.parametrize("kind", HEADS)
def test_entropy_gradients_of_bfloat16_heads(kind):
    """Products of numbers with 8 bits of mantissa: 2e-2 of the gradient's norm, as without entropies."""
    hidden, labels, head = make(kind)
    a, b = torch.randn(N), torch.randn(N)
    rounded = hidden.detach().bfloat16().requires_grad_()
    low = head._replace(
        weight=head.weight.detach().bfloat16().requires_grad_(),
        bias=None if head.bias is None else head.bias.detach().bfloat16().requires_grad_(),
    )
    # exact products of the rounded numbers
    exact = rounded.detach().float().requires_grad_()
    wide = low._replace(
        weight=low.weight.detach().float().requires_grad_(),
        bias=None if low.bias is None else low.bias.detach().float().requires_grad_(),
    )
    _, expected, entropy = with_entropies(exact, labels, wide, a, b)
    rows = policy_gradient_rows(rounded, labels, low, lambda at, _: a[at], entropy_gradient=b)
    assert rows.entropy.dtype == torch.float32
    # logits of order 1 are rounded at 2^-9 of themselves
    torch.testing.assert_close(rows.entropy, entropy, rtol=0, atol=2e-2)
    leaves = [leaf for leaf in (rounded, low.weight, low.bias) if leaf is not None]
    for found, right in zip(torch.autograd.grad(rows.anchor, leaves), expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - right).norm() < 2e-2 * right.norm()


def test_entropy_of_a_certain_token_has_no_gradient():
    """p = 1 to the last digit: p log p is 0, and so is its slope. Nothing becomes NaN."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D), 1e4 * torch.randn(V, D)
    labels = (hidden @ weight.T).argmax(dim=1)
    hidden.requires_grad_()
    weight.requires_grad_()
    ones = torch.ones(N)
    rows = policy_gradient_rows(hidden, labels, OutputHead(weight), lambda at, _: ones[at], entropy_gradient=ones)
    for gradient in torch.autograd.grad(rows.anchor, (hidden, weight)):
        assert torch.isfinite(gradient).all()
    certain = rows.logprobs == 0
    assert certain.sum() > N / 2
    assert rows.entropy[certain].abs().max() < 1e-6


def test_the_entropy_of_unlikely_labels():
    """A label whose probability is 0 in float32 keeps a finite gradient."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D), 1e3 * torch.randn(V, D)
    labels = (hidden @ weight.T).argmin(dim=1)
    hidden.requires_grad_()
    ones = torch.ones(N)
    rows = policy_gradient_rows(hidden, labels, OutputHead(weight), lambda at, _: ones[at], entropy_gradient=ones)
    (gradient,) = torch.autograd.grad(rows.anchor, hidden)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("kind", HEADS)
def test_without_entropies_nothing_changes(kind, monkeypatch):
    """Without entropy slopes the other pass over the vocabulary is never entered, and None is the default."""
    monkeypatch.setattr("trl_step.head.policy_gradient._mixed", None)
    results = []
    for options in ({}, {"entropy_gradient": None}):
        hidden, labels, head = make(kind)
        rows = policy_gradient_rows(hidden, labels, head, lambda at, x: 2 * x, 0.7, **options)
        leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]
        results.append([rows.logprobs, rows.entropy, *torch.autograd.grad(rows.anchor, leaves)])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
