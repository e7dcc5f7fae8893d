"""Rewards to come, by hand."""

import torch

from trl_step.algorithms.advantages.returns import remax_advantages, returns_to_go

# the third token was written by a tool, and the last of the second sample is padding; what is there must not count
REWARDS = torch.tensor([[1.0, 2.0, 100.0, 4.0], [0.5, 0.0, 8.0, -9.0]])
MASK = torch.tensor([[1, 1, 0, 1], [1, 1, 1, 0]])


def test_the_sum_of_the_rewards_to_come():
    # 1 + 2 + 4, 2 + 4, 4; 0.5 + 0 + 8, 0 + 8, 8
    assert returns_to_go(REWARDS, MASK).tolist() == [[7.0, 6.0, 0.0, 4.0], [8.5, 8.0, 8.0, 0.0]]


def test_a_discount_per_counted_token():
    # 1 + (2 + 4 / 2) / 2 = 3, 2 + 4 / 2 = 4, 4: the token in between takes no time; 0.5 + 8 / 4 = 2.5, 8 / 2, 8
    assert returns_to_go(REWARDS, MASK, gamma=0.5).tolist() == [[3.0, 4.0, 0.0, 4.0], [2.5, 4.0, 8.0, 0.0]]


def test_remax_by_hand():
    # the returns less 1.5 and 8, nothing where the mask is 0
    baselines = torch.tensor([1.5, 8.0])
    assert remax_advantages(REWARDS, MASK, baselines).tolist() == [[5.5, 4.5, 0.0, 2.5], [0.5, 0.0, 0.0, 0.0]]
    # 3 - 1.5, 4 - 1.5, 4 - 1.5; 2.5 - 8, 4 - 8, 8 - 8: the baseline is not discounted
    expected = [[1.5, 2.5, 0.0, 2.5], [-5.5, -4.0, 0.0, 0.0]]
    assert remax_advantages(REWARDS, MASK, baselines, gamma=0.5).tolist() == expected


def test_inputs_stay_as_they_are():
    rewards = REWARDS.clone()
    remax_advantages(rewards, MASK, torch.ones(2), gamma=0.5)
    assert torch.equal(rewards, REWARDS)
