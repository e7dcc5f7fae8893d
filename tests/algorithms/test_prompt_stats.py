"""Rewards as advantages: of a batch, and of each prompt by itself."""

from __future__ import annotations

import numpy as np
import pytest

from trl_step.algorithms.prompt_stats import PerPromptStatTracker, batch_advantages


def test_advantages_of_a_batch_by_hand() -> None:
    """Mean 2, standard deviation over n 1."""
    assert batch_advantages([1.0, 3.0]).tolist() == pytest.approx([-1.0, 1.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reward", [0.1, 1e6 / 3])
def test_equal_rewards_give_zeros(reward: float, dtype: type) -> None:
    assert batch_advantages(np.full(7, reward, dtype=dtype)).tolist() == [0.0] * 7


def test_rewards_of_a_prompt_are_compared_with_its_last_ones() -> None:
    tracker = PerPromptStatTracker(buffer_size=3, min_count=2)
    first = tracker.update(["a", "b", "a"], np.array([1.0, 5.0, 3.0]))
    assert first[[0, 2]].tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)  # of a alone: mean 2, deviation 1
    assert first[1] == pytest.approx((5 - 3) / np.std([1, 5, 3]), rel=1e-5)  # b has one reward: compared with all
    second = tracker.update(["a", "a"], np.array([5.0, 7.0]))
    basis = np.array([3.0, 5.0, 7.0])  # the buffer holds three
    assert second.tolist() == pytest.approx(((np.array([5, 7]) - basis.mean()) / basis.std()).tolist(), rel=1e-5)


def test_a_tracker_goes_on_from_its_state() -> None:
    one, other = (PerPromptStatTracker(buffer_size=3, min_count=2) for _ in range(2))
    one.update(["a", "a", "b"], [1.0, 2.0, 3.0])
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == {"a": [1.0, 2.0], "b": [3.0]}
    for tracker in (one, other):
        tracker.update(["a", "a", "a"], [4.0, 5.0, 6.0])
    assert other.state_dict() == one.state_dict() == {"a": [4.0, 5.0, 6.0], "b": [3.0]}
