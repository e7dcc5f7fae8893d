import pytest
import torch

from trl_step.ppo import token_logprobs as module
from trl_step.ppo.loss import policy_loss_gradient, policy_losses
from trl_step.ppo.token_logprobs import (
    OutputHead,
    exact_divergence,
    logprobs_of_logits,
    policy_gradient_rows,
    token_logprobs,
)

N, D, V = 37, 8, 23
HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.25},
    "softcap": {"softcap": 3.0},
    "all": {"bias": True, "scale": 0.5, "softcap": 2.0},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, and a last one that is smaller."""
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", 10 * V)
    monkeypatch.setattr(module, "MIN_CHUNK_ROWS", 1)


def make(kind, dtype=torch.float32):
    torch.manual_seed(0)
    options = dict(HEADS[kind])
    if options.pop("bias", False):
        options["bias"] = torch.randn(V, dtype=dtype, requires_grad=True)
    weight = torch.randn(V, D, dtype=dtype, requires_grad=True)
    hidden = (0.3 * torch.randn(N, D, dtype=dtype)).requires_grad_()
    return hidden, torch.randint(V, (N,)), OutputHead(weight, **options)


def plain_logits(hidden, head):
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits


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


def test_buffers_are_used_again_and_given_back():
    hidden, labels, head = make("plain")
    buffers = module.ChunkBuffers()
    with buffers.kept():
        first = buffers.rows("policy", 10, head.weight)
        token_logprobs(hidden, labels, head, buffers=buffers)
        assert buffers.rows("policy", 7, head.weight).data_ptr() == first.data_ptr()
        assert buffers.rows("policy", 11, head.weight).data_ptr() != first.data_ptr()
        assert buffers.rows("reference", 7, head.weight).data_ptr() != first.data_ptr()
        assert buffers.rows("policy", 7, head.weight.double()).dtype == torch.float64
        buffers.rows("policy", 7, head.weight)
    one, other = (buffers.rows("policy", 7, head.weight) for _ in range(2))
    assert one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", HEADS)
def test_gradients_against_autograd(kind, temperature):
    hidden, labels, head = make(kind)
    old, advantages, weights = torch.randn(N) - 3, torch.randn(N), torch.rand(N)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None]

    logprobs = logprobs_of_logits(plain_logits(hidden, head), labels, temperature)
    loss = (policy_losses(logprobs, old, advantages, 0.2).losses * weights).sum() * 3.0
    expected = torch.autograd.grad(loss, leaves)

    def gradient_of(rows, chunk):
        return policy_loss_gradient(chunk, old[rows], advantages[rows], 0.2) * weights[rows]

    result = policy_gradient_rows(hidden, labels, head, gradient_of, temperature)
    assert result.anchor.item() == 0.0
    torch.testing.assert_close(result.logprobs, logprobs.detach())
    torch.testing.assert_close(torch.autograd.grad(result.anchor * 3.0, leaves), expected)


@pytest.mark.parametrize("kind", HEADS)
def test_gradients_against_finite_differences(kind):
    """In float64, of a smooth loss: the sum of w * logprob² over all rows."""
    hidden, labels, head = make(kind, torch.float64)
    weights = torch.rand(N, dtype=torch.float64)

    class Loss(torch.autograd.Function):
        """The loss by its definition, the gradient by the chunked path."""

        @staticmethod
        def forward(ctx, h, w):
            ctx.save_for_backward(h, w)
            return (weights * token_logprobs(h, labels, head._replace(weight=w)) ** 2).sum()

        @staticmethod
        def backward(ctx, upstream):
            h, w = (t.detach().requires_grad_() for t in ctx.saved_tensors)
            with torch.enable_grad():
                rows = policy_gradient_rows(
                    h, labels, head._replace(weight=w), lambda rows, chunk: 2 * weights[rows] * chunk
                )
                return torch.autograd.grad(rows.anchor, (h, w), upstream)

    assert torch.autograd.gradcheck(Loss.apply, (hidden, head.weight))


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


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", HEADS)
def test_exact_divergence_against_the_definition(kind, temperature):
    hidden, labels, head = make(kind)
    ref_hidden, ref_head = torch.randn(N, D), OutputHead(torch.randn(V, D))
    ours, theirs = (
        torch.log_softmax(logits / temperature, dim=-1).detach()
        for logits in (plain_logits(hidden, head), ref_hidden @ ref_head.weight.T)
    )
    result = exact_divergence(hidden, ref_hidden, labels, head, ref_head, temperature)
    torch.testing.assert_close(result.divergence, (ours.exp() * (ours - theirs)).sum(-1))
    torch.testing.assert_close(result.logprobs, ours[torch.arange(N), labels])
    torch.testing.assert_close(result.ref_logprobs, theirs[torch.arange(N), labels])
    torch.testing.assert_close(head.logits(hidden), plain_logits(hidden, head))
