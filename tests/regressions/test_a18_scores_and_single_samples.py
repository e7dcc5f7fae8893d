"""Row A18: scores of any kind are taken, and a single sample has statistics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import batch, trainer


@pytest.mark.parametrize("kind", [float, round, torch.tensor, lambda x: torch.tensor([x]), np.float32])
def test_scores_of_any_kind_are_taken(kind: Any) -> None:
    queries, responses, scores = batch()
    scores = [kind(score) for score in scores]
    assert trainer("gpt2").step(queries, responses, scores)["ppo/mean_scores"] == pytest.approx(
        np.mean([float(score) for score in scores]), rel=1e-5
    )


@pytest.mark.parametrize(
    "options", [{}, {"use_score_norm": True}, {"whiten_rewards": True}, {"use_score_scaling": True, "score_clip": 1.0}]
)
@pytest.mark.parametrize("response", [[7], [7, 8, 9]])
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_batch_of_one_has_finite_statistics(name: str, response: list[int], options: dict[str, Any]) -> None:
    ours = trainer(name, batch_size=1, mini_batch_size=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the KL divergence|the policy moves")
        for last in (6, 7):
            stats = ours.step([torch.tensor([4, 5, last])], [torch.tensor(response)], [1.0])
            for key, value in stats.items():
                assert bool(torch.isfinite(torch.as_tensor(value)).all()), key
    assert stats["ppo/std_scores"] == 0
    assert stats["tokens/responses_len_std"] == 0
    assert all(bool(torch.isfinite(p).all()) for p in ours.model.parameters())
    ours.log_stats(stats, {"query": ["q"], "response": ["r"]}, [torch.tensor(1.0)])


def test_arrays_of_a_batch_of_one_are_arrays() -> None:
    stats = trainer("gpt2").step([torch.tensor([4, 5])], [torch.tensor([6, 7])], [1.0])
    for key in ("objective/kl_dist", "tokens/queries_dist", "tokens/responses_dist"):
        assert stats[key].shape == (1,)
