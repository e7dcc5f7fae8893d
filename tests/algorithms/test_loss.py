import math

import pytest
import torch

from trl_step.algorithms.objective import (
    mean_over,
    minibatch_statistics,
    minibatch_weights,
    policy_loss_gradient,
    policy_losses,
    value_losses,
)


def test_policy_losses_by_hand():
    ratio = torch.tensor([[1.0, 1.5, 0.5], [1.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]])
    result = policy_losses(ratio.log(), torch.zeros(2, 3), advantages, cliprange=0.2)
    # A > 0 is capped at 1.2, A < 0 at 0.8
    torch.testing.assert_close(result.losses, torch.tensor([[-2.0, -2.4, -1.0], [1.5, 0.8, 1.1]]))
    assert result.clipped.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_policy_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    old, advantages = torch.randn(200), torch.randn(200)
    logprobs = (old + torch.randn(200) * 0.4).requires_grad_()
    policy_losses(logprobs, old, advantages, 0.2).losses.sum().backward()
    torch.testing.assert_close(policy_loss_gradient(logprobs.detach(), old, advantages, 0.2), logprobs.grad)


def test_value_losses_by_hand():
    vpreds, values = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0.0, 0.9, 0.0])
    returns = torch.tensor([1.0, 2.0, 5.0])
    result = value_losses(vpreds, values, returns, cliprange_value=0.2)
    # clipped predictions: 0.2, 1.0, 0.2 -> squared errors free 0, 1, 4 and clipped 0.64, 1, 23.04
    torch.testing.assert_close(result.losses, torch.tensor([0.32, 0.5, 11.52]))
    assert result.clipped.tolist() == [1, 0, 1]


def test_mean_over_ignores_what_is_masked():
    values, mask = torch.tensor([[1.0, math.nan], [3.0, 8.0]]), torch.tensor([[1, 0], [1, 1]])
    assert float(mean_over(values, mask)) == 4.0
    assert float(mean_over(values, torch.zeros_like(mask))) == 0.0


def test_statistics_by_hand():
    mask = torch.tensor([[1, 1, 0]])
    stats = minibatch_statistics(
        logprobs=torch.tensor([[-1.0, -2.0, 0.0]]),
        old_logprobs=torch.tensor([[-1.5, -1.5, 0.0]]),
        vpreds=torch.tensor([[1.0, 2.0, 0.0]]),
        values=torch.tensor([[1.0, 3.0, 0.0]]),
        advantages=torch.tensor([[1.0, -1.0, 9.0]]),
        returns=torch.tensor([[2.0, 4.0, 9.0]]),
        mask=mask,
        entropy=torch.tensor([[0.5, 1.5, 9.0]]),
        cliprange=0.2,
        cliprange_value=0.2,
        vf_coef=0.1,
    )
    policy = (-1.2 + 0.8) / 2  # ratios e^0.5 and e^-0.5: both clipped
    value = (0.5 * 1.0 + 0.5 * 4.0) / 2  # errors 1 and 2; the clipped 2.8 is nearer to 4
    expected = {
        "loss/policy": policy,
        "loss/value": value,
        "loss/total": policy + 0.1 * value,
        "policy/entropy": 1.0,
        "policy/approxkl": 0.125,
        "policy/policykl": 0.0,
        "policy/clipfrac": 1.0,
        "policy/advantages_mean": 0.0,
        "returns/mean": 3.0,
        "returns/var": 2.0,
        "val/vpred": 1.5,
        "val/error": 2.5,
        "val/clipfrac": 0.0,
        "val/mean": 2.0,
        "val/var": 2.0,
    }
    assert {k: pytest.approx(float(v), abs=1e-6) for k, v in stats.items() if v.dim() == 0} == expected
    torch.testing.assert_close(stats["policy/ratio"], torch.tensor([[math.exp(0.5), math.exp(-0.5), 1.0]]))


def test_weights_make_the_mean_over_all_tokens():
    own = torch.tensor([[6.0, 2.0], [2.0, 1.0]])
    assert minibatch_weights(own, own, 1, "tokens") == pytest.approx([6 / 8, 2 / 8])
    assert minibatch_weights(own, own, 1, "mini_batch") == pytest.approx([2 / 3, 1 / 3])


def test_weights_over_processes():
    # two processes share one mini-batch: 6 and 2 tokens of 3 and 1 samples; DDP halves the sum of their gradients
    everyone = torch.tensor([[8.0, 4.0]])
    for mode in ("tokens", "mini_batch"):
        a = minibatch_weights(torch.tensor([[6.0, 3.0]]), everyone, 2, mode)
        b = minibatch_weights(torch.tensor([[2.0, 1.0]]), everyone, 2, mode)
        assert (a[0] / 2, b[0] / 2) == pytest.approx((6 / 8, 2 / 8))


def test_an_empty_minibatch_weighs_nothing():
    own, everyone = torch.tensor([[4.0, 2.0], [0.0, 0.0]]), torch.tensor([[8.0, 4.0], [3.0, 1.0]])
    assert minibatch_weights(own, everyone, 2, "mini_batch")[1] == 0.0
