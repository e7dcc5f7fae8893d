import math

import pytest
import torch

from trl_step.algorithms.kl import AdaptiveKLController, FixedKLController, kl_penalty

LOGPROBS = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])
REF_LOGPROBS = torch.tensor([[-1.5, -1.0], [-0.5, -1.0]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kl", [[0.5, -1.0], [0.0, -2.0]]),
        ("abs", [[0.5, 1.0], [0.0, 2.0]]),
        ("mse", [[0.125, 0.5], [0.0, 2.0]]),
        ("k3", [[math.exp(-0.5) - 0.5, math.e - 2.0], [0.0, math.exp(2.0) - 3.0]]),
    ],
)
def test_penalty_by_hand(kind, expected):
    torch.testing.assert_close(kl_penalty(LOGPROBS, REF_LOGPROBS, kind), torch.tensor(expected))


def test_full_penalty_is_the_divergence():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    by_hand = 0.5 * math.log(2) - 0.25 * math.log(2)
    torch.testing.assert_close(kl_penalty(p.log(), q.log(), "full"), torch.tensor(by_hand))


def test_full_penalty_of_an_excluded_token_is_zero():
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])
    torch.testing.assert_close(kl_penalty(p.log(), q.log(), "full"), torch.tensor(math.log(2)))


def test_unknown_penalty_is_named():
    with pytest.raises(ValueError, match=r"kl_penalty='k4' is not known.*full"):
        kl_penalty(LOGPROBS, REF_LOGPROBS, "k4")


@pytest.mark.parametrize(
    ("current", "factor"),
    [
        (6.6, 1 + 0.1 * 100 / 10000),  # 10 % above the target
        (60.0, 1 + 0.2 * 100 / 10000),  # the error is limited to 20 %
        (0.0, 1 - 0.2 * 100 / 10000),
        (6.0, 1.0),
    ],
)
def test_adaptive_controller_by_hand(current, factor):
    controller = AdaptiveKLController(0.2, target=6, horizon=10000)
    controller.update(current, n_steps=100)
    assert controller.value == pytest.approx(0.2 * factor, rel=1e-12)


def test_fixed_controller_stays():
    controller = FixedKLController(0.3)
    controller.update(100.0, 1000)
    assert controller.value == 0.3


@pytest.mark.parametrize("make", [FixedKLController, lambda value: AdaptiveKLController(value, target=6, horizon=100)])
def test_a_controller_goes_on_from_its_state(make):
    one, two = make(0.3), make(0.7)
    one.update(current=12, n_steps=8)
    two.load_state_dict(one.state_dict())
    assert one.state_dict() == {"kl_coef": one.value}
    assert two.value == one.value
