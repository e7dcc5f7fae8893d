import pytest
import torch

from trl_step.algorithms.advantages.gae import advantages_and_returns, gae, gae_of_counted
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
