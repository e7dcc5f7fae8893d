"""`normalize_reward` and `normalize_advantage` of RLOO, by hand and over processes."""

from __future__ import annotations

import pytest
import torch

from trl_step.algorithms.advantages.group import normalized_advantages
from trl_step.algorithms.rewards import normalized_scores


def test_scores_by_hand() -> None:
    """Mean 2, deviation sqrt(((-2)² + (-1)² + 3²) / 2) = sqrt(7)."""
    scores = torch.tensor([0.0, 1.0, 5.0])
    expected = torch.tensor([-2.0, -1.0, 3.0]) / 7**0.5
    torch.testing.assert_close(normalized_scores(scores, 10.0), expected)
    torch.testing.assert_close(normalized_scores(scores, 0.5), expected.clamp(-0.5, 0.5))
    assert scores.tolist() == [0.0, 1.0, 5.0]


def test_equal_scores_and_a_single_one_are_0() -> None:
    assert normalized_scores(torch.tensor([3.0, 3.0]), 10.0).tolist() == [0.0, 0.0]
    assert normalized_scores(torch.tensor([3.0]), 10.0).tolist() == [0.0]


def test_advantages_count_samples_and_not_tokens() -> None:
    mask = torch.tensor([[1, 1, 1], [0, 1, 0], [1, 1, 0]])
    advantages = torch.tensor([0.0, 1.0, 5.0]).unsqueeze(1) * mask
    expected = (torch.tensor([-2.0, -1.0, 3.0]) / 7**0.5).unsqueeze(1) * mask
    torch.testing.assert_close(normalized_advantages(advantages, mask), expected)


@pytest.mark.parametrize("function", ["scores", "advantages"])
def test_two_processes_are_one(function: str) -> None:
    whole, split = torch.tensor([0.0, 1.0, 5.0, -2.0, 4.0]), 2

    def normalized(values: torch.Tensor, reduce_sum: object = None) -> torch.Tensor:
        more = {} if reduce_sum is None else {"reduce_sum": reduce_sum}
        if function == "scores":
            return normalized_scores(values, 10.0, **more)
        return normalized_advantages(values.unsqueeze(1), torch.ones(len(values), 1), **more)[:, 0]

    parts = whole[:split], whole[split:]
    shares: list[list[torch.Tensor]] = []
    for part, other in (parts, parts[::-1]):
        sums = iter([torch.tensor([other.sum(), len(other)]), ((other - whole.mean()) ** 2).sum()])
        shares.append([normalized(part, lambda own, sums=sums: own + next(sums).to(own))])
    torch.testing.assert_close(torch.cat([share[0] for share in shares]), normalized(whole))
