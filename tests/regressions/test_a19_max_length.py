"""Row A19: `max_length` bounds the tokens of an episode; the reference release raised a TypeError."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from tests.environment.environment_tools import EOS, environment, in_turn
from trl_step.environment import TextHistory

CALL = "<request><echo>hi<call>"  # 23 tokens; the reply "hi<response>" has 12
PROMPT = 2  # <s>t


def run(max_length: int, *answers: str, **settings):
    env = environment(in_turn(*answers), max_length=max_length, **settings)
    _, responses, masks, _, histories = env.run(["t"])
    assert len(histories[0].tokens) <= max_length
    return env, histories[0], responses[0], masks[0]


def test_an_episode_that_fits_is_not_touched() -> None:
    _, history, _, _ = run(PROMPT + 23 + 12 + 8, CALL, "<submit>")
    assert history.text == "t" + CALL + "hi<response><submit>"
    assert (history.completed, history.truncated) == (True, False)


def test_a_turn_gets_the_room_that_is_left() -> None:
    env, history, _, _ = run(PROMPT + 23 + 12 + 7, CALL, "<submit>")
    assert history.text == "t" + CALL + "hi<response><submit"
    assert (history.completed, history.truncated) == (True, True)
    assert [call["max_new_tokens"] for call in env.model.calls] == [23 + 12 + 7, 7]


def test_a_reply_without_room_is_left_out() -> None:
    for room in (0, 11, 12):  # with 12 the reply fits, but no token of the model behind it
        _, history, _, masks = run(PROMPT + 23 + room, CALL, "<submit>")
        assert history.text == "t" + CALL
        assert (history.completed, history.truncated) == (True, True)
        assert masks.tolist() == [1] * 23


@pytest.mark.parametrize("max_length", [1, 2])
def test_a_prompt_without_room_ends_truncated(max_length: int) -> None:
    env = environment(lambda text: "<submit>", max_length=max_length + 8)
    with pytest.warns(UserWarning, match=r"tasks \[1\] leave no room"):
        _, responses, masks, rewards, histories = env.run(["t", "x" * (9 + max_length)])
    assert histories[0].text == "t<submit>"[: 1 + max_length + 6]
    assert (histories[1].completed, histories[1].truncated) == (True, True)
    assert responses[1].tolist() == [EOS]
    assert masks[1].tolist() == [0]
    assert len(rewards) == 2


def test_all_prompts_without_room() -> None:
    env = environment(in_turn("x"), max_length=2)
    with pytest.warns(UserWarning, match="no room"):
        *_, histories = env.run(["long task"])
    assert histories[0].truncated
    assert env.model.prompts == []


def test_the_callers_own_limits_still_hold() -> None:
    def texts(**kwargs) -> str:
        env = environment(in_turn("abcdefghij"), max_length=8, generation_kwargs=kwargs)
        return env.run(["t"])[4][0].text

    assert texts(max_new_tokens=3) == "tabc"
    assert texts(max_new_tokens=30) == "tabcdef"
    assert texts() == "tabcdef"
    assert texts(max_length=PROMPT + 2) == "tab"
    assert texts(generation_config=GenerationConfig(max_new_tokens=4)) == "tabcd"
    assert texts(generation_config=GenerationConfig(max_length=PROMPT + 2)) == "tab"


def test_the_tokens_of_the_history_are_counted() -> None:
    env = environment(in_turn("x"), max_length=3)
    history = TextHistory("a text of many characters<request><call>", torch.tensor([5, 6, 7]))
    assert env.task_end_check(history) == (False, False)
    history.append_segment("x", torch.tensor([8]))
    assert env.task_end_check(history) == (True, True)
