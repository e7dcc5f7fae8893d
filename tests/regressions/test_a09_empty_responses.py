"""Row A9: a response without a counted token is refused by name, before any forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import EOS, PAD, batch, trainer
from tests.trainer.runs.state_tools import changed, everything


def empty(responses: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
    responses[4], masks[4] = responses[4][:0], masks[4][:0]


def masked(responses: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
    masks[4] = torch.zeros_like(masks[4])


def start_only(responses: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
    responses[4], masks[4] = torch.tensor([PAD]), torch.tensor([1])


def start_counts_only(responses: list[torch.Tensor], masks: list[torch.Tensor]) -> None:
    responses[4], masks[4] = torch.tensor([PAD, 7, 8]), torch.tensor([1, 0, 0])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", empty, r"responses\[4\] is empty; drop the sample"),
        ("gpt2", masked, r"response_masks\[4\] masks every token of its response"),
        ("t5", empty, r"responses\[4\] is empty; drop the sample"),
        ("t5", masked, r"response_masks\[4\] masks every token of its response"),
        ("t5", start_only, r"responses\[4\] holds the decoder start token and nothing else"),
        ("t5", start_counts_only, r"response_masks\[4\] masks every generated token"),
    ],
)
def test_it_is_refused_before_any_forward_pass(
    name: str, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = trainer(name)
    queries, responses, scores = batch()
    masks = [torch.ones_like(response) for response in responses]
    change(responses, masks)
    before = everything(ours)

    def forward(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a forward pass, though the inputs are wrong")

    for model in (ours.model, ours.ref_model):
        monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ValueError, match=message):
        ours.step(queries, responses, scores, masks)
    assert changed(before, everything(ours)) == []


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_one_token_is_enough(name: str) -> None:
    ours = trainer(name)
    queries, _, scores = batch()
    before = everything(ours)
    stats = ours.step(queries, [torch.tensor([EOS])] * 8, scores)  # what a model that stops at once gives
    assert "weights" in changed(before, everything(ours))
    assert all(value == value for value in stats.values() if isinstance(value, float))
