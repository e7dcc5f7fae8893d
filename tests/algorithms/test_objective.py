import math
from functools import partial

import pytest
import torch

from trl_step.algorithms.losses.policy import Clip, clipped_policy_losses, configured_policy_losses
from trl_step.algorithms.losses.tokens import mean_over, token_weights
from trl_step.algorithms.losses.value import clipped_value_losses
from trl_step.algorithms.objective import Minibatch, Objective, minibatch_weights
from trl_step.trainer.ppo_config import PPOConfig

OBJECTIVE = Objective(
    configured_policy_losses(PPOConfig()), partial(clipped_value_losses, cliprange_value=0.2), vf_coef=0.1
)


def summed(old_logprobs, advantages):
    """A mini-batch of which every token counts once, so that means are sums."""
    ones = torch.ones_like(old_logprobs)
    return Minibatch(ones, ones, old_logprobs, advantages)


def test_policy_losses_by_hand():
    ratio = torch.tensor([[1.0, 1.5, 0.5], [1.5, 0.5, 1.1]])
    advantages = torch.tensor([[2.0, 2.0, 2.0], [-1.0, -1.0, -1.0]])
    result = clipped_policy_losses(ratio.log(), torch.zeros(2, 3), advantages, Clip(0.2))
    # A > 0 is capped at 1.2, A < 0 at 0.8
    torch.testing.assert_close(result.losses, torch.tensor([[-2.0, -2.4, -1.0], [1.5, 0.8, 1.1]]))
    assert result.clipped.tolist() == [[0, 1, 0], [0, 1, 0]]


def derivative_by_hand(logprobs, old, advantages, cliprange):
    """-A r, and 0 where the clip decides."""
    ratio = torch.exp(logprobs - old)
    decided = ((advantages > 0) & (ratio > 1 + cliprange)) | ((advantages < 0) & (ratio < 1 - cliprange))
    return torch.where(decided, 0.0, -advantages * ratio)


def test_the_slope_is_the_derivative_by_hand_to_the_bit():
    torch.manual_seed(0)
    old, advantages = torch.randn(200_000), torch.randn(200_000)
    advantages[:50] = 0.0
    logprobs = old + torch.randn(200_000) * 0.4
    logprobs[50:100] = old[50:100]  # both branches of the loss are the same there
    expected = derivative_by_hand(logprobs, old, advantages, 0.2)
    with torch.no_grad():
        slope = OBJECTIVE.slope(logprobs, summed(old, advantages))
    assert torch.equal(slope, expected)
    assert not slope.requires_grad


def test_the_slope_is_the_gradient_of_the_summed_losses():
    torch.manual_seed(0)
    old, advantages = torch.randn(200), torch.randn(200)
    logprobs = (old + torch.randn(200) * 0.4).requires_grad_()
    clipped_policy_losses(logprobs, old, advantages, Clip(0.2)).losses.sum().backward()
    torch.testing.assert_close(OBJECTIVE.slope(logprobs, summed(old, advantages)), logprobs.grad, rtol=0, atol=0)


def test_the_total_is_what_the_plain_path_differentiates():
    torch.manual_seed(0)
    logprobs, vpreds = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    known = {name: torch.randn(2, 3) for name in ("old_logprobs", "old_values", "advantages", "returns")}
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = Minibatch(mask=mask, weights=token_weights(mask, "mini_batch"), **known)
    policy, value, stats = OBJECTIVE.evaluate(batch, logprobs=logprobs, vpreds=vpreds, entropy=torch.zeros(2, 3))
    (policy + 0.1 * value).backward()
    slope = OBJECTIVE.slope(logprobs.detach(), summed(known["old_logprobs"], known["advantages"]))
    torch.testing.assert_close(logprobs.grad, slope * mask / 3)
    assert vpreds.grad.count_nonzero() <= 3
    assert float(stats["loss/total"]) == float(policy + 0.1 * value)
    assert not any(each.requires_grad for each in stats.values())


def test_value_losses_by_hand():
    vpreds, values = torch.tensor([1.0, 1.0, 3.0]), torch.tensor([0.0, 0.9, 0.0])
    returns = torch.tensor([1.0, 2.0, 5.0])
    result = clipped_value_losses(vpreds, values, returns, cliprange_value=0.2)
    # clipped predictions: 0.2, 1.0, 0.2 -> squared errors free 0, 1, 4 and clipped 0.64, 1, 23.04
    torch.testing.assert_close(result.losses, torch.tensor([0.32, 0.5, 11.52]))
    assert result.clipped.tolist() == [1, 0, 1]


def test_mean_over_ignores_what_is_masked():
    values, mask = torch.tensor([[1.0, math.nan], [3.0, 8.0]]), torch.tensor([[1, 0], [1, 1]])
    assert float(mean_over(values, mask)) == 4.0
    assert float(mean_over(values, torch.zeros_like(mask))) == 0.0


def test_statistics_by_hand():
    mask = torch.tensor([[1, 1, 0]])
    batch = Minibatch(
        mask=mask,
        weights=token_weights(mask, "mini_batch"),
        old_logprobs=torch.tensor([[-1.5, -1.5, 0.0]]),
        advantages=torch.tensor([[1.0, -1.0, 9.0]]),
        old_values=torch.tensor([[1.0, 3.0, 0.0]]),
        returns=torch.tensor([[2.0, 4.0, 9.0]]),
    )
    stats = OBJECTIVE.evaluate(
        batch,
        logprobs=torch.tensor([[-1.0, -2.0, 0.0]]),
        vpreds=torch.tensor([[1.0, 2.0, 0.0]]),
        entropy=torch.tensor([[0.5, 1.5, 9.0]]),
    ).statistics
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
        "policy/ratio_mean": (math.exp(0.5) + math.exp(-0.5)) / 2,
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


# --- further terms: two samples of two and one tokens ------------------------------------------------------------

TERMS_MASK = torch.tensor([[1, 1], [1, 0]])
LOGPROBS = torch.tensor([[-1.0, -2.0], [-0.5, 7.0]])
REF = torch.tensor([[-1.5, -2.0], [-1.0, 9.0]])
ENTROPY = torch.tensor([[1.0, 2.0], [3.0, math.nan]])
# reinforce at r = 1: the loss and the slope of a token are -A
TERMS_ADVANTAGES = torch.tensor([[1.0, -2.0], [3.0, 5.0]])


def evaluated(normalization="tokens", old=LOGPROBS, importance=None, positive=None, **terms):
    """0-d loss, its slope [2, 2], and the statistics."""
    objective = Objective(configured_policy_losses(PPOConfig(policy_loss="reinforce")), None, 0.0, **terms)
    weights = token_weights(TERMS_MASK, normalization)
    batch = Minibatch(TERMS_MASK, weights, old, TERMS_ADVANTAGES, REF, importance=importance, positive=positive)
    losses = objective.evaluate(batch, logprobs=LOGPROBS, entropy=ENTROPY, vpreds=None)
    assert losses.value is None
    return float(losses.policy), objective.slope(LOGPROBS, batch), losses.statistics


def test_the_policy_s_loss_alone():
    # (-1 + 2 - 3) / 3
    loss, slope, stats = evaluated()
    assert loss == pytest.approx(-2 / 3)
    torch.testing.assert_close(slope, torch.tensor([[-1.0, 2.0], [-3.0, 0.0]]) / 3)
    assert not {"loss/kl", "loss/positive_nll", "loss/value", "policy/clipfrac", "val/error"} & set(stats)
    # mean of the samples' means: ((-1 + 2) / 2 - 3) / 2
    loss, slope, _ = evaluated("samples")
    assert loss == pytest.approx(-1.25)
    torch.testing.assert_close(slope, torch.tensor([[-0.25, 0.5], [-1.5, 0.0]]))


def test_a_kl_penalty_in_the_loss():
    # d = 0.5, 0, 0.5: k3 = exp(-0.5) - 0.5 = 0.1065307 with slope 1 - exp(-0.5) = 0.3934693; k2 0.125, 0.5
    for kind, value, its_slope in (("k3", 0.1065307, 0.3934693), ("mse", 0.125, 0.5), ("abs", 0.5, 1.0)):
        loss, slope, stats = evaluated(kl_kind=kind, kl_coef=0.3)
        assert loss == pytest.approx(-2 / 3 + 0.3 * 2 * value / 3)
        torch.testing.assert_close(slope, (torch.tensor([[-1.0, 2.0], [-3.0, 0.0]]) + 0.3 * its_slope *
                                           torch.tensor([[1.0, 0.0], [1.0, 0.0]])) / 3)  # fmt: skip
        assert float(stats["loss/kl"]) == pytest.approx(2 * value / 3)
        assert float(stats["loss/policy"]) == pytest.approx(-2 / 3)
        assert float(stats["loss/total"]) == pytest.approx(loss)


def test_the_log_probs_of_positive_samples():
    # factor 1.5 on the first sample: mean -(1.5 * -1 + 1.5 * -2) / 3 = 1.5
    positive = torch.tensor([[1.5, 1.5], [0.0, 0.0]])
    loss, slope, stats = evaluated(nll_coef=0.2, positive=positive)
    assert float(stats["loss/positive_nll"]) == pytest.approx(1.5)
    assert loss == pytest.approx(-2 / 3 + 0.2 * 1.5)
    torch.testing.assert_close(slope, torch.tensor([[-1.0 - 0.3, 2.0 - 0.3], [-3.0, 0.0]]) / 3)


def test_an_entropy_bonus_lowers_the_loss():
    # mean entropy (1 + 2 + 3) / 3 = 2; with means of samples (1.5 + 3) / 2 = 2.25, and the slope is the policy's
    loss, slope, stats = evaluated(entropy_coef=0.1)
    assert loss == pytest.approx(-2 / 3 - 0.1 * 2)
    assert torch.equal(slope, evaluated()[1])
    assert float(stats["policy/entropy"]) == 2.0
    assert evaluated("samples", entropy_coef=0.1)[0] == pytest.approx(-1.25 - 0.1 * 2.25)


def test_importance_weighs_the_policy_s_loss_alone():
    # factors 0.5, 0, 2: (-0.5 + 0 - 6) / 3; the KL (0.1065307 for the first and third token) is not weighed
    importance = torch.tensor([[0.5, 0.0], [2.0, 0.0]])
    loss, slope, stats = evaluated(importance=importance, kl_coef=0.3)
    assert float(stats["loss/policy"]) == pytest.approx(-6.5 / 3)
    assert loss == pytest.approx(-6.5 / 3 + 0.3 * 2 * 0.1065307 / 3)
    kl = 0.3 * 0.3934693
    torch.testing.assert_close(slope, torch.tensor([[-0.5 + kl, 0.0], [-6.0 + kl, 0.0]]) / 3)


def test_a_sample_that_is_left_out_may_have_an_infinite_loss():
    """The ratio of a token of another policy overflows; its factor is 0."""
    old = torch.tensor([[-200.0, -2.0], [-0.5, 0.0]])
    loss, _, stats = evaluated(old=old, importance=torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert loss == pytest.approx((2 - 3) / 3)
    assert float(stats["loss/policy"]) == pytest.approx(-1 / 3)


def test_all_terms_add_up_and_can_be_switched_off():
    positive, importance = torch.tensor([[1.5, 1.5], [0.0, 0.0]]), torch.tensor([[0.5, 0.0], [2.0, 0.0]])
    everything = {"kl_coef": 0.3, "nll_coef": 0.2, "entropy_coef": 0.1, "positive": positive, "importance": importance}
    loss, slope, _ = evaluated(**everything)
    assert loss == pytest.approx(-6.5 / 3 + 0.3 * 2 * 0.1065307 / 3 + 0.2 * 1.5 - 0.1 * 2)
    half, half_slope, _ = evaluated(**everything, policy_coef=0.5)
    assert half == pytest.approx(loss / 2)
    torch.testing.assert_close(half_slope, slope / 2)
    nothing, no_slope, _ = evaluated(**everything, policy_coef=0.0)
    assert nothing == 0.0
    assert no_slope.tolist() == [[0.0, 0.0], [0.0, 0.0]]
