"""Row A19: an end token in the prompt does not end the episode; only one that the model wrote does."""

from __future__ import annotations

import torch

from tests.environment.environment_tools import EOS, environment, in_turn
from trl_step.environment import TextHistory

CALL = "<request><echo>x<call>"


def test_a_prompt_with_an_end_token_gets_all_its_turns() -> None:
    env = environment(in_turn(CALL, "fine<submit>"), prompt="Q: one</s>Q: ")
    queries, *_, histories = env.run(["two"])
    assert EOS in queries[0].tolist()
    assert histories[0].text == "Q: one</s>Q: two" + CALL + "x<response>fine<submit>"


def test_who_wrote_the_end_token() -> None:
    env = environment(in_turn(""))
    by_system = TextHistory(CALL + "</s>", torch.tensor([5, EOS]), system=True)
    by_model = TextHistory(CALL + "</s>", torch.tensor([5, EOS]), system=False)
    assert env.task_end_check(by_system) == (False, False)
    assert env.task_end_check(by_model) == (False, True)
    by_model.append_segment("reply", torch.tensor([6, EOS]))
    assert env.task_end_check(by_model, model_turn=False) == (False, False)
