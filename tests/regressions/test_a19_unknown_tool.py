"""Row A19: the reply about an unknown tool reaches the model; it was overwritten by a KeyError's text."""

from __future__ import annotations

from tests.environment.environment_tools import environment, in_turn


def test_the_reply_names_the_tool() -> None:
    *_, histories = environment(in_turn("<request><nope>hi<call>", "<submit>")).run(["t"])
    assert histories[0].text == "t<request><nope>hi<call>Unknown tool nope.<response><submit>"
