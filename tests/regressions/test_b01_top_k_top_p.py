"""Row B1: `top_k_top_p_filtering` is our own, with the law of the one that transformers had."""

from __future__ import annotations

import pytest
import torch

from trl_step.core import respond_to_batch, top_k_top_p_filtering

LOGITS = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.05, 0.15, 0.3, 0.5]]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [4, 4]),
        (2, 1.0, [2, 2]),
        (9, 1.0, [4, 4]),
        (0, 0.7, [2, 2]),  # the token that crosses the sum is kept
        (0, 0.45, [1, 1]),
        (0, 0.0, [1, 1]),  # at least one
        (3, 0.6, [2, 2]),
    ],
)
def test_what_is_kept(top_k: int, top_p: float, kept: list[int]) -> None:
    filtered = top_k_top_p_filtering(LOGITS.clone(), top_k=top_k, top_p=top_p)
    assert torch.isfinite(filtered).sum(dim=1).tolist() == kept
    best = filtered.argmax(dim=1)
    assert best.tolist() == [0, 3]
    chosen = torch.isfinite(filtered)
    assert torch.equal(filtered[chosen], LOGITS[chosen])


def test_at_least_so_many_are_kept() -> None:
    filtered = top_k_top_p_filtering(LOGITS.clone(), top_k=1, top_p=0.1, min_tokens_to_keep=3)
    assert torch.isfinite(filtered).sum(dim=1).tolist() == [3, 3]


def test_another_filler() -> None:
    filtered = top_k_top_p_filtering(LOGITS.clone(), top_k=1, filter_value=-7.0)
    assert filtered[0, 1:].tolist() == [-7.0] * 3


def test_the_old_sampler_runs_with_it() -> None:
    class Model(torch.nn.Module):
        def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
            return (LOGITS[ids % 2],)

    torch.manual_seed(0)
    drawn = respond_to_batch(Model(), torch.zeros(50, 1, dtype=torch.long), txt_len=3, top_k=1)
    assert drawn.shape == (50, 3)
    assert set(drawn[:, 0].tolist()) == {0}
