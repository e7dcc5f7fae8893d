"""Row A16: scores are normed and scaled as documented, and the running moments can be saved."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tests.tiny import batch, trainer
from trl_step import PPOTrainer


class Watched(PPOTrainer):
    """Keeps the scores that the rewards were made of."""

    def compute_rewards(self, scores: torch.Tensor, *args: Any) -> Any:
        self.used = scores.clone()
        return super().compute_rewards(scores, *args)


def scores_of(step: int) -> torch.Tensor:
    return torch.tensor(batch(seed=step)[2]) * 3 + 5


def used(steps: int = 3, **options: Any) -> list[torch.Tensor]:
    ours, seen = trainer("gpt2", cls=Watched, **options), []
    for step in range(steps):
        queries, responses, _ = batch(seed=step)
        ours.step(queries, responses, scores_of(step).tolist())
        seen.append(ours.used)
    return seen


def expected(norm: bool, scale: bool, steps: int = 3) -> list[torch.Tensor]:
    """With mean and unbiased deviation of all scores so far, this batch included."""
    so_far = [torch.cat([scores_of(i) for i in range(step + 1)]) for step in range(steps)]
    return [
        (scores_of(step) - (seen.mean() if norm else 0)) / (seen.std() if scale else 1)
        for step, seen in enumerate(so_far)
    ]


@pytest.mark.parametrize(
    ("options", "norm", "scale"),
    [
        ({}, False, False),
        ({"use_score_scaling": True}, False, True),
        ({"use_score_norm": True}, True, True),  # the norm implies the scaling
        ({"use_score_norm": True, "use_score_scaling": True}, True, True),
    ],
)
def test_scores_are_shaped_as_documented(options: dict[str, Any], norm: bool, scale: bool) -> None:
    for seen, truth in zip(used(**options), expected(norm, scale), strict=True):
        torch.testing.assert_close(seen, truth, rtol=1e-5, atol=1e-5)


def test_the_clip_comes_last() -> None:
    for seen, truth in zip(used(use_score_norm=True, score_clip=0.7), expected(True, True), strict=True):
        torch.testing.assert_close(seen, truth.clamp(-0.7, 0.7), rtol=1e-5, atol=1e-5)


def test_the_old_numbers_are_there_for_a_port() -> None:
    """Release 0.7.11 ignores the norm without the scaling."""
    for seen, truth in zip(used(use_score_norm=True, exact_v07=True), expected(False, False), strict=True):
        assert torch.equal(seen, truth)


def test_the_running_moments_go_on_where_they_were() -> None:
    whole = trainer("gpt2", cls=Watched, use_score_norm=True)
    first = trainer("gpt2", cls=Watched, use_score_norm=True)
    for step in range(2):
        for ours in (whole, first):
            queries, responses, _ = batch(seed=step)
            ours.step(queries, responses, scores_of(step).tolist())
    saved = json.loads(json.dumps(first.running.state_dict()))
    second = trainer("gpt2", cls=Watched, use_score_norm=True)
    second.running.load_state_dict(saved)
    for ours in (whole, second):
        queries, responses, _ = batch(seed=2)
        ours.step(queries, responses, scores_of(2).tolist())
    assert torch.equal(whole.used, second.used)
    assert whole.running.state_dict() == second.running.state_dict()
    assert whole.running.count == 24
