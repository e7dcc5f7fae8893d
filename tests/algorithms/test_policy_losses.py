"""Losses of the policy with values, clips and slopes by hand."""

import math

import pytest
import torch

from trl_step.algorithms.losses.policy import (
    COUPLED,
    Clip,
    cispo_losses,
    clipped_policy_losses,
    configured_policy_losses,
    dppo_losses,
    gspo_losses,
    reinforce_losses,
    sapo_losses,
    sequence_clip_losses,
)
from trl_step.algorithms.objective import Minibatch
from trl_step.trainer.ppo_config import PPOConfig

# r = 1.5, 0.5, 1.1 for A = 2 and for A = -1
RATIO = torch.tensor([[1.5, 0.5, 1.1], [1.5, 0.5, 1.1]])
ADVANTAGES = torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]])
OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.0, -2.0]])
MASK = torch.ones(2, 3).long()


def slopes(function, logprobs, weights=None):
    """d (weighted sum of the losses) / d logprobs."""
    logprobs = logprobs.clone().requires_grad_()
    losses = function(logprobs).losses
    return torch.autograd.grad((losses if weights is None else losses * weights).sum(), logprobs)[0]


def check(function, losses, clipped, slope, old=OLD, ratio=RATIO):
    """All three at log-probs with these ratios."""
    logprobs = old + ratio.log()
    found = function(logprobs)
    torch.testing.assert_close(found.losses, torch.tensor(losses))
    if clipped is None:
        assert found.clipped is None
    else:
        assert found.clipped.tolist() == clipped
    torch.testing.assert_close(slopes(function, logprobs), torch.tensor(slope))


def test_clip():
    # A > 0: -2 min(r, 1.2) = -2.4, -1, -2.2; A < 0: max(r, 0.8) = 1.5, 0.8, 1.1
    # d r / d logprob = r, so the slope is the loss, and 0 where the clip decided
    check(
        lambda x: clipped_policy_losses(x, OLD, ADVANTAGES, Clip(0.2)),
        [[-2.4, -1.0, -2.2], [1.5, 0.8, 1.1]],
        [[1, 0, 0], [0, 1, 0]],
        [[0.0, -1.0, -2.2], [1.5, 0.0, 1.1]],
    )


def test_clip_higher():
    # to 0.9 .. 1.3: A > 0: -2 * 1.3; A < 0: 0.9
    check(
        lambda x: clipped_policy_losses(x, OLD, ADVANTAGES, Clip(0.1, 0.3)),
        [[-2.6, -1.0, -2.2], [1.5, 0.9, 1.1]],
        [[1, 0, 0], [0, 1, 0]],
        [[0.0, -1.0, -2.2], [1.5, 0.0, 1.1]],
    )


def test_a_high_of_zero_is_not_none():
    # A > 0: -2 min(r, 1)
    check(
        lambda x: clipped_policy_losses(x, OLD, ADVANTAGES, Clip(0.2, 0.0)),
        [[-2.0, -1.0, -2.0], [1.5, 0.8, 1.1]],
        [[1, 0, 1], [0, 1, 0]],
        [[0.0, -1.0, 0.0], [1.5, 0.0, 1.1]],
    )


def test_dual_clip():
    # A < 0: at most 1.3: r = 1.5 gives 1.3 without a slope; A > 0 is as it was
    check(
        lambda x: clipped_policy_losses(x, OLD, ADVANTAGES, Clip(0.2, None, 1.3)),
        [[-2.4, -1.0, -2.2], [1.3, 0.8, 1.1]],
        [[1, 0, 0], [1, 1, 0]],
        [[0.0, -1.0, -2.2], [0.0, 0.0, 1.1]],
    )


def test_no_advantage_is_neither_clipped_nor_trained():
    zeros = torch.zeros(2, 3)
    check(
        lambda x: clipped_policy_losses(x, OLD, zeros, Clip(0.2, None, 1.3)),
        zeros.tolist(),
        zeros.tolist(),
        zeros.tolist(),
    )


def test_gspo():
    # geometric means: r = 2, 0.5, 1 -> 1; r = 1.5, 1.5, 1.5 -> 1.5
    ratio = torch.tensor([[2.0, 0.5, 1.0], [1.5, 1.5, 1.5]])
    # losses -2 * 1 and 1.5 for each token; d s / d logprob = s / 3, and three losses of the sample: the slope is one
    # token's loss
    check(
        lambda x: gspo_losses(x, OLD, ADVANTAGES, MASK, Clip(0.2)),
        [[-2.0] * 3, [1.5] * 3],
        [[0] * 3, [0] * 3],
        [[-2.0] * 3, [1.5] * 3],
        ratio=ratio,
    )
    # A = 2, -1 swapped: s = 1.5 with A = 2 is cut to 1.2
    check(
        lambda x: gspo_losses(x, OLD, -ADVANTAGES * 2, MASK, Clip(0.2)),
        [[4.0] * 3, [-2.4] * 3],
        [[0] * 3, [1] * 3],
        [[4.0] * 3, [0.0] * 3],
        ratio=ratio,
    )


def test_sequence_clip():
    # products: 2 * 0.5 * 1.1 = 1.1; 0.5 * 0.9 * 1 = 0.45; with A < 0 the second is cut to 0.8
    # d product / d logprob = product, from each of the three losses: the slope is 3 * -2 * 1.1
    check(
        lambda x: sequence_clip_losses(x, OLD, ADVANTAGES, MASK, Clip(0.2)),
        [[-2.2] * 3, [0.8] * 3],
        [[0] * 3, [1] * 3],
        [[-6.6] * 3, [0.0] * 3],
        ratio=torch.tensor([[2.0, 0.5, 1.1], [0.5, 0.9, 1.0]]),
    )


@pytest.mark.parametrize("losses", [gspo_losses, sequence_clip_losses])
def test_coupled_losses_use_ranges_and_dual_clip(losses):
    """The ratio is 1.5 for both samples: the high range cuts the first, the dual clip the second."""
    ratio = torch.tensor([[1.5, 1.0], [1.5, 1.0]]) if losses is sequence_clip_losses else torch.full((2, 2), 1.5)
    given = torch.zeros(2, 2), torch.tensor([[2.0, 2.0], [-1.0, -1.0]]), torch.ones(2, 2).long(), Clip(0.1, 0.3, 1.25)
    found = losses(ratio.log(), *given)
    torch.testing.assert_close(found.losses, torch.tensor([[-2.6, -2.6], [1.25, 1.25]]))
    assert found.clipped.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(("losses", "ratio", "slope"), [(gspo_losses, 1.2, 1.2), (sequence_clip_losses, 1.44, 2.88)])
def test_coupled_losses_over_masked_samples(losses, ratio, slope):
    """Counted tokens have r = 1.2: mean 1.2, product 1.44. What is masked may be anything, and has no slope."""
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    log_ratio = torch.tensor([[math.log(1.2), math.nan, math.log(1.2)], [50.0, math.nan, -math.inf]])
    old, advantages = torch.zeros(2, 3), -torch.ones(2, 3)
    found = losses(log_ratio, old, advantages, mask, Clip(0.5))
    torch.testing.assert_close(found.losses[0], torch.full((3,), ratio))
    assert found.losses[1].tolist() == [1.0] * 3  # exp of a mean of nothing
    # weights are 0 where the mask is 0: a mean or product of two tokens in two losses: 2 * 1.2 / 2 and 2 * 1.44
    gradient = slopes(lambda x: losses(x, old, advantages, mask, Clip(0.5)), log_ratio, weights=mask)
    torch.testing.assert_close(gradient, torch.tensor([[slope, 0.0, slope], [0.0, 0.0, 0.0]]))


def test_cispo():
    # -min(r, 1.2) A logprob; logprob = old + log r. The slope is -min(r, 1.2) A: no gradient through r
    logprobs = OLD + RATIO.log()
    weight = torch.tensor([[-2.4, -1.0, -2.2], [1.2, 0.5, 1.1]])
    check(
        lambda x: cispo_losses(x, OLD, ADVANTAGES, 1.2),
        (weight * logprobs).tolist(),
        [[1, 0, 0], [1, 0, 0]],
        weight.tolist(),
    )


def test_reinforce():
    # -A r, and d r / d logprob = r
    losses = [[-3.0, -1.0, -2.2], [1.5, 0.5, 1.1]]
    check(lambda x: reinforce_losses(x, OLD, ADVANTAGES), losses, None, losses)


def test_sapo():
    # tau 2 for A > 0, 4 else; sigmoid(tau (r - 1)), A = 2: of 1, -1, 0.2; A = -1: of 2, -2, 0.4
    sigmoid = torch.tensor([[0.7310586, 0.2689414, 0.5498340], [0.8807971, 0.1192029, 0.5986877]])
    # -A 4 / tau = -4 and 1
    losses = torch.tensor([[-4.0], [1.0]]) * sigmoid
    # d sigmoid / d logprob = sigmoid (1 - sigmoid) tau r, so the slope is -4 A sigmoid (1 - sigmoid) r
    slope = torch.tensor([[-8.0], [4.0]]) * sigmoid * (1 - sigmoid) * RATIO
    check(lambda x: sapo_losses(x, OLD, ADVANTAGES, (2.0, 4.0)), losses.tolist(), None, slope.tolist())


def test_sapo_without_an_advantage_takes_the_second_temperature():
    """The loss is 0 with either; what counts is that nothing is NaN. At r = 1 the slope is that of -A r."""
    ratio, advantages = torch.ones(1, 2), torch.tensor([[0.0, -2.0]])
    check(
        lambda x: sapo_losses(x, torch.zeros(1, 2), advantages, (2.0, 4.0)),
        [[0.0, 1.0]],  # 2 * 4 / 4 * 1 / 2
        None,
        [[0.0, 2.0]],
        ratio=ratio,
        old=torch.zeros(1, 2),
    )


# probabilities 0.5 at the start, now 0.75, 0.25, 0.625: moved by 0.25, -0.25, 0.125; r = 1.5, 0.5, 1.25
HALF = torch.full((2, 3), math.log(0.5))
MOVED = torch.tensor([[1.5, 0.5, 1.25], [1.5, 0.5, 1.25]])


def test_dppo():
    # delta 0.2: A > 0 leaves out what rose by more, A < 0 what fell by more; the rest is -A r
    check(
        lambda x: dppo_losses(x, HALF, ADVANTAGES, 0.2),
        [[0.0, -1.0, -2.5], [1.5, 0.0, 1.25]],
        [[1, 0, 0], [0, 1, 0]],
        [[0.0, -1.0, -2.5], [1.5, 0.0, 1.25]],
        old=HALF,
        ratio=MOVED,
    )


def test_dppo_goes_by_probabilities_not_ratios():
    # from 0.01 to 0.1: a ratio of 10, a move of 0.09; from 0.9 to 0.6: a ratio of 0.67, a move of -0.3
    old, now = torch.tensor([[0.01, 0.9]]).log(), torch.tensor([[0.1, 0.6]]).log()
    found = dppo_losses(now, old, torch.tensor([[1.0, -1.0]]), 0.2)
    torch.testing.assert_close(found.losses, torch.tensor([[-10.0, 0.0]]))
    assert found.clipped.tolist() == [[0, 1]]


def test_dppo_from_the_sampler():
    # the sampler's probability is 0.625: moves 0.125, -0.375, 0. The ratio is still that to the old policy
    sampling = torch.full((2, 3), math.log(0.625))
    check(
        lambda x: dppo_losses(x, HALF, ADVANTAGES, 0.2, sampling),
        [[-3.0, -1.0, -2.5], [1.5, 0.0, 1.25]],
        [[0, 0, 0], [0, 1, 0]],
        [[-3.0, -1.0, -2.5], [1.5, 0.0, 1.25]],
        old=HALF,
        ratio=MOVED,
    )


@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_products_of_ratios_stay_finite(log_ratio, advantage):
    """A long answer's product leaves float32; an answer half as likely at each of 300 tokens is enough."""
    old, ones = torch.zeros(1, 4), torch.ones(1, 4)
    logprobs = old + log_ratio / 4

    def function(x):
        return sequence_clip_losses(x, old, advantage * ones, ones, Clip(0.2))

    assert torch.isfinite(function(logprobs).losses).all()
    assert torch.isfinite(slopes(function, logprobs)).all()


@pytest.mark.parametrize("log_ratio", [200.0, -200.0])
def test_cispo_bounds_any_ratio(log_ratio):
    old, ones = torch.full((1, 2), -300.0), torch.ones(1, 2)
    found = cispo_losses(old + log_ratio, old, ones, 5.0)
    # weight 5 on a logprob of -100; exp(-200) is 0 in float32
    assert found.losses.tolist() == [[500.0, 500.0]] if log_ratio > 0 else [[0.0, 0.0]]
    expected = -5.0 if log_ratio > 0 else 0.0
    assert slopes(lambda x: cispo_losses(x, old, ones, 5.0), old + log_ratio).tolist() == [[expected] * 2]


def test_losses_at_once_follow_the_settings():
    """Each setting reaches its loss; sampling log-probs reach dppo."""
    logprobs = OLD + RATIO.log()
    sampling = OLD + 0.3
    batch = Minibatch(MASK, MASK, OLD, ADVANTAGES, sampling_logprobs=sampling)
    clips = {"cliprange": 0.01, "cliprange_high": 0.03, "dual_clip": 1.4}
    given = OLD, ADVANTAGES
    expected = {
        "clip": (clips, clipped_policy_losses(logprobs, *given, Clip(0.01, 0.03, 1.4))),
        "gspo": (clips, gspo_losses(logprobs, *given, MASK, Clip(0.01, 0.03, 1.4))),
        "sequence_clip": (clips, sequence_clip_losses(logprobs, *given, MASK, Clip(0.01, 0.03, 1.4))),
        "cispo": ({"cispo_bound": 1.3}, cispo_losses(logprobs, *given, 1.3)),
        "reinforce": ({}, reinforce_losses(logprobs, *given)),
        "sapo": ({"sapo_temperatures": (2.0, 4.0)}, sapo_losses(logprobs, *given, (2.0, 4.0))),
        "dppo": ({"dppo_delta": 0.01}, dppo_losses(logprobs, *given, 0.01, sampling)),
    }
    for kind, (settings, right) in expected.items():
        function = configured_policy_losses(PPOConfig(policy_loss=kind, **settings))
        torch.testing.assert_close(function(logprobs, batch), right, rtol=0, atol=0)
        moved = logprobs - torch.tensor([0.0, 0.0, 0.7])
        coupled = not torch.equal(function(moved, batch).losses[:, :2], right.losses[:, :2])
        assert coupled == (kind in COUPLED)
