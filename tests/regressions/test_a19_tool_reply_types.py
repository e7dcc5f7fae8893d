"""Row A19: a tool may return anything; what was no string crashed the batch."""

from __future__ import annotations

import pytest

from tests.environment.environment_tools import environment, in_turn


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


@pytest.mark.parametrize(
    ("value", "want"),
    [(42, "42"), (None, "None"), (1.5, "1.5"), (["a"], "['a']"), (Unprintable(), "Tool error: cannot be shown")],
)
def test_any_reply_becomes_text(value, want: str) -> None:
    env = environment(in_turn("<request><tool>x<call>", "<submit>"), tools={"tool": lambda _: value})
    assert env.run(["t"])[4][0].text == f"t<request><tool>x<call>{want}<response><submit>"
