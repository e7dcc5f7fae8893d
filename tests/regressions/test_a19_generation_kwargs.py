"""Row A19: the caller's `generation_kwargs` are not changed by a run."""

from __future__ import annotations

from tests.environment.environment_tools import environment, in_turn


def test_generation_kwargs_stay_as_they_are() -> None:
    settings = {"max_new_tokens": 50, "pad_token_id": 0, "eos_token_id": 1}
    before = dict(settings)
    env = environment(in_turn("<request><echo>x<call>", "<submit>"), generation_kwargs=settings, max_length=100)
    env.run(["t"])
    assert settings == before
    assert env.generation_kwargs == before
    env.run(["t"])
    assert len(env.model.calls[-1]["stopping_criteria"]) == 1
