"""`TextHistory` keeps text, tokens and masks of an episode side by side."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.environment.environment_tools import byte_tokenizer
from trl_step.environment import TextHistory


def episode() -> TextHistory:
    history = TextHistory("task", torch.tensor([5, 6]))
    history.append_segment("call", torch.tensor([7]), system=False)
    history.append_segment("reply", torch.tensor([8, 9, 10]))
    return history


def test_segments_are_kept_in_order() -> None:
    history = episode()
    assert history.text == "taskcallreply"
    assert history.tokens.tolist() == [5, 6, 7, 8, 9, 10]
    assert history.token_masks.tolist() == [0, 0, 1, 0, 0, 0]
    assert history.text_spans == [(0, 4), (4, 8), (8, 13)]
    assert history.token_spans == [(0, 2), (2, 3), (3, 6)]
    assert history.system_spans == [True, False, True]
    assert history.last_text_segment == "reply"
    assert history.last_token_segment.tolist() == [8, 9, 10]
    assert not history.completed
    assert history.reward == 0.0


def test_split_into_query_response_and_mask() -> None:
    query, response, mask = episode().split_query_response_tokens()
    assert query.tolist() == [5, 6]
    assert response.tolist() == [7, 8, 9, 10]
    assert mask.tolist() == [1, 0, 0, 0]
    assert mask.dtype == response.dtype == torch.long


def test_complete() -> None:
    history = episode()
    history.complete(truncated=True)
    assert history.completed
    assert history.truncated


@pytest.mark.parametrize(("text", "tokens"), [("", [1]), ("a", [])])
def test_empty_segments_are_refused(text: str, tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="segment needs text and tokens"):
        episode().append_segment(text, torch.tensor(tokens, dtype=torch.long))


def test_show(capsys) -> None:
    history = episode()
    history.reward = 2.5
    history.show_text(show_legend=True)
    history.show_tokens(byte_tokenizer())
    TextHistory("only a prompt", torch.tensor([3])).show_text()
    shown = capsys.readouterr().out
    for words in (
        "taskcallreply",
        "Reward: 2.5",
        "Colour Legend: Prompt|System|Model|Reward",
        "# $ %",
        "only a prompt",
    ):
        assert words in shown


def test_show_without_rich_warns(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("trl_step.environment.text_history.is_rich_available", lambda: False)
    history = episode()
    for show in (history.show_text, lambda: history.show_tokens(byte_tokenizer()), history.show_colour_legend):
        with pytest.warns(UserWarning, match="pip install rich"):
            show()
