"""Processes may have different numbers of samples; what they exchange must have the same shape all the same."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import trainer


def stats_of(samples: int) -> dict[str, torch.Tensor]:
    return {"objective/kl": torch.tensor(2.0), "objective/kl_dist": torch.ones(samples), "mine": torch.ones(1)}


def test_an_array_of_one_sample_is_not_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = trainer()
    exchanged: list[torch.Size] = []
    monkeypatch.setattr(ours._processes, "sum", lambda tensor: exchanged.append(tensor.shape) or 3 * tensor)
    one, two = ours.gather_stats(stats_of(1)), ours.gather_stats(stats_of(2))
    assert exchanged[0] == exchanged[1]
    assert one["objective/kl_dist"].tolist() == [1.0]
    assert two["objective/kl_dist"].tolist() == [1.0, 1.0]
    assert float(one["objective/kl"]) == 6.0
    assert float(one["mine"]) == 3.0
