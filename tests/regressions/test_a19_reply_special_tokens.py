"""Row A19: tool replies carry no BOS (or other special tokens) that the tokenizer puts around a text."""

from __future__ import annotations

from tests.environment.environment_tools import BOS, environment, in_turn, text_of


def test_only_the_prompt_has_a_bos() -> None:
    env = environment(in_turn("<request><echo>x<call>", "<submit>"))
    queries, responses, masks, _, histories = env.run(["t"])
    assert queries[0][0] == BOS
    assert BOS not in responses[0].tolist()
    assert text_of(responses[0][masks[0] == 0]) == "x<response>"
    assert histories[0].tokens.tolist().count(BOS) == 1
