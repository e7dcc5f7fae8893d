"""Row A18: scores of any kind are taken, and a single sample has statistics."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import batch, trainer
from trl_step import PPOTrainer


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
        warnings.filterwarnings("ignore", "the KL divergence|the policy moves|one token counts")
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


ONE_TOKEN = "one token counts in the whole batch, and whitening makes its advantage 0"


def given_masks(*masks: list[int]) -> dict[str, Any]:
    return {"response_masks": [torch.tensor(mask) for mask in masks]}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, given_masks([0, 1, 0])),
        ({"advantage_estimator": "reinforce_plus_plus"}, given_masks([0, 0, 1])),
        ({"whiten_advantages": True, "init_kl_coef": 0.0, "adap_kl_ctrl": False}, {"advantages": [2.0]}),
    ],
)
def test_a_batch_with_one_token_is_said_to_teach_nothing(options: dict[str, Any], more: dict[str, Any]) -> None:
    ours = trainer("gpt2", batch_size=1, mini_batch_size=1, **options)
    responses = [torch.tensor([7, 8, 9][: 3 if "response_masks" in more else 1])]
    before = ours.model.pretrained_model.lm_head.weight.detach().clone()
    with pytest.warns(UserWarning, match=ONE_TOKEN):
        stats = ours.step([torch.tensor([4, 5, 6])], responses, [1.0], **more)
    assert stats["ppo/policy/advantages_mean"] == 0
    if "init_kl_coef" in options:  # neither values nor a KL penalty
        assert torch.equal(before, ours.model.pretrained_model.lm_head.weight)


@pytest.mark.parametrize(
    ("options", "masks"), [({}, [[0, 1, 1]]), ({}, [[1, 0, 0], [0, 0, 1]]), ({"whiten_advantages": False}, [[0, 1, 0]])]
)
def test_what_whitening_leaves_is_not_warned_of(options: dict[str, Any], masks: list[list[int]]) -> None:
    ours = trainer("gpt2", batch_size=len(masks), mini_batch_size=1, **options)
    count = len(masks)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ONE_TOKEN)
        ours.step(
            [torch.tensor([4, 5, 6])] * count, [torch.tensor([7, 8, 9])] * count, [1.0] * count, **given_masks(*masks)
        )


def test_own_advantages_are_not_said_to_be_whitened() -> None:
    class Own(PPOTrainer):
        def compute_advantages(self, values: Any, rewards: Any, mask: Any) -> Any:
            return values * mask, rewards * mask, rewards * mask

    ours = trainer("gpt2", cls=Own, batch_size=1, mini_batch_size=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ONE_TOKEN)
        ours.step([torch.tensor([4, 5, 6])], [torch.tensor([7])], [1.0])
