import pytest
import torch

from trl_step.algorithms.advantages.gae import (
    advantages_and_returns,
    gae,
    gae_of_counted,
    gae_of_turns,
    length_adaptive_lam,
)
from trl_step.core import masked_mean, masked_var

VALUES = torch.tensor([[1.0, 2.0, 3.0]])
REWARDS = torch.tensor([[0.5, 0.0, 1.0]])


def test_gae_by_hand():
    # deltas with gamma 0.5: 0.5 + 1 - 1 = 0.5; 0 + 1.5 - 2 = -0.5; 1 - 3 = -2;  factor gamma lam = 0.25
    expected = [[0.5 + 0.25 * (-0.5 + 0.25 * -2.0), -0.5 + 0.25 * -2.0, -2.0]]
    torch.testing.assert_close(gae(VALUES, REWARDS, gamma=0.5, lam=0.5), torch.tensor(expected))


def plain_gae(values, rewards, gamma, lam):
    """One sample, the sum of the definition: A_t = sum_l (gamma lam)^l delta_{t+l}."""
    n = len(values)
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < n else 0.0) - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def test_counted_tokens_alone_are_steps():
    torch.manual_seed(0)
    mask = (torch.rand(5, 9) > 0.4).long()
    mask[:, 4] = 1
    values, rewards = torch.randn(5, 9), torch.randn(5, 9)
    got = gae_of_counted(values, rewards, mask, gamma=0.9, lam=0.8)
    for i in range(5):
        at = mask[i].nonzero().flatten()
        expected = plain_gae(values[i][at].tolist(), rewards[i][at].tolist(), 0.9, 0.8)
        torch.testing.assert_close(got[i][at], torch.tensor(expected))
        assert (got[i][mask[i] == 0] == 0).all()


def test_masked_tokens_in_between_change_nothing():
    values, rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    tight = gae_of_counted(values, rewards, torch.ones(1, 4).long(), 0.99, 0.95)
    wide_values = torch.tensor([[1.0, 2.0, 9.0, 9.0, 3.0, 4.0]])
    wide_rewards = torch.tensor([[0.1, 0.2, 9.0, 9.0, 0.3, 0.4]])
    mask = torch.tensor([[1, 1, 0, 0, 1, 1]])
    wide = gae_of_counted(wide_values, wide_rewards, mask, 0.99, 0.95)
    torch.testing.assert_close(wide[mask.bool()], tight[0])


@pytest.mark.parametrize("old_release", [False, True])
def test_whitened_advantages_and_returns(old_release):
    torch.manual_seed(1)
    mask = torch.zeros(3, 8).long()
    mask[0, 2:6] = mask[1, 3:8] = mask[2, 1:2] = 1
    values, rewards = torch.randn(3, 8), torch.randn(3, 8)
    before = values.clone(), rewards.clone()
    result = advantages_and_returns(values, rewards, mask, 1.0, 0.95, masked_steps_take_time=old_release)
    raw = gae_of_counted(values, rewards, mask, 1.0, 0.95)
    counted = mask.bool()
    # without masks in between both ways of counting time agree
    torch.testing.assert_close(result.returns[counted], (raw + values)[counted])
    torch.testing.assert_close(masked_mean(result.advantages, mask), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(masked_var(result.advantages, mask), torch.tensor(1.0))
    torch.testing.assert_close(result.values, values * mask)
    torch.testing.assert_close((values, rewards), before, rtol=0, atol=0)


def test_whitened_rewards_keep_their_mean_and_stay_out_of_the_padding():
    mask = torch.tensor([[1, 1, 1, 0]])
    rewards = torch.tensor([[1.0, 2.0, 6.0, 100.0]])  # mean 3, unbiased std sqrt(7)
    result = advantages_and_returns(torch.zeros(1, 4), rewards, mask, gamma=0.0, lam=1.0, whiten_rewards=True)
    expected = torch.tensor([[-2.0, -1.0, 3.0]]) / 7**0.5 + 3.0
    torch.testing.assert_close(result.returns[:, :3], expected)


def test_one_lambda_for_each_sample():
    # gamma 0.5: deltas 0.5, -0.5, -2 as above; gamma lam = 0.25 and 0
    found = gae(VALUES.repeat(2, 1), REWARDS.repeat(2, 1), gamma=0.5, lam=torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(found, torch.tensor([[0.5 + 0.25 * -1.0, -0.5 + 0.25 * -2.0, -2.0], [0.5, -0.5, -2.0]]))


def test_lambda_of_the_returns_by_hand():
    ones = torch.ones(1, 3).long()
    # lam 0: advantages are the deltas with gamma 1: 0.5 + 2 - 1 = 1.5; 0 + 3 - 2 = 1; 1 - 3 = -2
    # value_lam 1: returns are the sums of the rewards to come: 1.5, 1, 1; with lam 0 they were 2.5, 3, 1
    result = advantages_and_returns(VALUES, REWARDS, ones, 1.0, 0.0, whiten=False, value_lam=1.0)
    assert result.advantages.tolist() == [[1.5, 1.0, -2.0]]
    assert result.returns.tolist() == [[1.5, 1.0, 1.0]]
    same = advantages_and_returns(VALUES, REWARDS, ones, 1.0, 0.0, whiten=False)
    assert same.returns.tolist() == [[2.5, 3.0, 1.0]]


def test_without_whitening_by_hand():
    ones = torch.ones(1, 3).long()
    # mean (1.5 + 1 - 2) / 3 = 1/6, variance ((4/3)² + (5/6)² + (13/6)²) / 2 = 3.5833 (ddof 1)
    raw = torch.tensor([[1.5, 1.0, -2.0]])
    whitened = advantages_and_returns(VALUES, REWARDS, ones, 1.0, 0.0)
    torch.testing.assert_close(whitened.advantages, (raw - 1 / 6) / (43 / 12) ** 0.5)
    assert torch.equal(advantages_and_returns(VALUES, REWARDS, ones, 1.0, 0.0, whiten=False).advantages, raw)


def test_lambda_by_length():
    mask = torch.tensor([[1] * 10, [1] * 5 + [0] * 5, [1] * 4 + [0] * 6, [0, 1] + [0] * 8])
    # alpha 0.25: 1 - 1 / 2.5 = 0.6; 1 - 1 / 1.25 = 0.2; 1 - 1 / 1 = 0; 1 - 1 / 0.25 = -3, which is 0
    torch.testing.assert_close(length_adaptive_lam(mask, 0.25), torch.tensor([0.6, 0.2, 0.0, 0.0]))
    # alpha 0.05 and 1000 tokens: 1 - 1 / 50
    torch.testing.assert_close(length_adaptive_lam(torch.ones(1, 1000), 0.05), torch.tensor([0.98]))


TURN_VALUES = torch.tensor([[9.0, 1.0, 7.0, 9.0, 2.0, 7.0]])
TURN_REWARDS = torch.tensor([[0.25, 0.25, 7.0, 1.0, 2.0, 7.0]])
TURN_MASK = torch.tensor([[1, 1, 0, 1, 1, 0]])  # two turns, a tool between them, padding


def test_two_turns_by_hand():
    # rewards 0.25 + 0.25 = 0.5 and 1 + 2 = 3; values those of the last tokens, 1 and 2
    # gamma 0.5: deltas 0.5 + 0.5 * 2 - 1 = 0.5 and 3 - 2 = 1; gamma lam 0.25: advantages 0.5 + 0.25 * 1 = 0.75 and 1
    # returns 0.75 + 1 = 1.75 and 1 + 2 = 3, the same for all tokens of a turn
    found = gae_of_turns(TURN_VALUES, TURN_REWARDS, TURN_MASK, gamma=0.5, lam=0.5)
    assert found.advantages.tolist() == [[0.75, 0.75, 0.0, 1.0, 1.0, 0.0]]
    assert found.returns.tolist() == [[1.75, 1.75, 0.0, 3.0, 3.0, 0.0]]
    assert torch.equal(found.values, TURN_VALUES)


def test_turns_of_several_samples():
    """A prompt before the first turn, one turn alone, and none beside it: every row as if it were alone."""
    values, rewards = torch.cat((TURN_VALUES, TURN_VALUES)), torch.cat((TURN_REWARDS, TURN_REWARDS))
    mask = torch.cat((TURN_MASK, torch.tensor([[0, 0, 1, 1, 1, 0]])))
    found = gae_of_turns(values, rewards, mask, 0.5, torch.tensor([0.5, 0.9]))
    # one turn: rewards 7 + 1 + 2 = 10, value 2: advantage 8, return 10
    assert found.advantages.tolist() == [[0.75, 0.75, 0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 8.0, 8.0, 8.0, 0.0]]
    assert found.returns.tolist() == [[1.75, 1.75, 0.0, 3.0, 3.0, 0.0], [0.0, 0.0, 10.0, 10.0, 10.0, 0.0]]


def test_turns_with_a_lambda_of_the_returns():
    # value_lam 1: returns are 0.5 + 0.5 * 3 = 2 and 3; values where the mask is 0 become 0
    found = advantages_and_returns(
        TURN_VALUES, TURN_REWARDS, TURN_MASK, 0.5, 0.5, whiten=False, value_lam=1.0, of_turns=True
    )
    assert found.advantages.tolist() == [[0.75, 0.75, 0.0, 1.0, 1.0, 0.0]]
    assert found.returns.tolist() == [[2.0, 2.0, 0.0, 3.0, 3.0, 0.0]]
    assert found.values.tolist() == [[9.0, 1.0, 0.0, 9.0, 2.0, 0.0]]
