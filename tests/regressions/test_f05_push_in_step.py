"""F5: `step` never pushes to a hub by default, and a failed push never loses the step."""

from __future__ import annotations

import pytest
import torch

from tests.hub_tools import Hub
from tests.tiny import batch, trainer, weights


def test_step_never_pushes_by_itself(hub: Hub) -> None:
    trainer("gpt2").step(*batch())
    assert hub.calls == []


def test_a_push_that_fails_does_not_lose_the_step(hub: Hub) -> None:
    plain = trainer("gpt2")
    expected = [plain.step(*batch(seed=step)[:2], [float(step)] * 8)["ppo/loss/total"] for step in range(2)]
    hub.error = ConnectionError("no network")
    ours = trainer("gpt2", push_to_hub_if_best_kwargs={"repo_id": "me/best"})
    for step in range(2):
        with pytest.warns(UserWarning, match="the push to me/best failed and training goes on: no network"):
            stats = ours.step(*batch(seed=step)[:2], [float(step)] * 8)
        assert stats["ppo/loss/total"] == expected[step]
    assert all(torch.equal(value, weights(plain.model)[key]) for key, value in weights(ours.model).items())
    hub.error = None
    ours.step(*batch()[:2], [0.5] * 8)  # not better than the second: that one was the best, pushed or not
    assert hub.uploads == []
