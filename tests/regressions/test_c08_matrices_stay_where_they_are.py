"""Row C8: what holds a number per token stays a tensor on its device until somebody reads it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import batch, trainer

MATRICES = ("objective/logprobs", "objective/ref_logprobs", "ppo/policy/ratio", "ppo/policy/advantages")


def test_they_are_tensors_without_a_graph() -> None:
    ours = trainer("gpt2")
    stats = ours.step(*batch())
    for key in MATRICES:
        assert isinstance(stats[key], torch.Tensor), key
        assert stats[key].device == ours.current_device
        assert not stats[key].requires_grad


def test_none_of_them_is_moved_to_the_host_by_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two devices this would be a copy and a wait."""
    moved: list[tuple[int, ...]] = []
    for name in ("cpu", "numpy", "tolist"):
        plain = getattr(torch.Tensor, name)

        def watch(self: torch.Tensor, *args: Any, plain: Any = plain, **kwargs: Any) -> Any:
            if self.is_floating_point() and self.dim() > 1 and self.numel() > 8:
                moved.append(tuple(self.shape))
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watch)
    trainer("gpt2").step(*batch())
    assert moved == []


def test_they_can_be_read_as_arrays_and_logged() -> None:
    ours = trainer("gpt2")
    queries, responses, scores = batch()
    stats = ours.step(queries, responses, scores)
    assert stats["objective/logprobs"].numpy().shape == (8, 10)
    ours.log_stats(stats, {"query": ["q"] * 8, "response": ["r"] * 8}, scores)
