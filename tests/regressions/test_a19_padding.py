"""Row A19: padding behind an answer that ended early is no part of the response."""

from __future__ import annotations

from tests.environment.environment_tools import PAD, environment, text_of


def test_no_padding_in_responses() -> None:
    env = environment(lambda text: "ends" if text.endswith("a") else "goes on for a longer while<submit>")
    _, responses, masks, _, _ = env.run(["a", "b"])
    assert text_of(responses[0]) == "ends</s>"
    assert PAD not in responses[0].tolist()
    assert masks[0].tolist() == [1] * len(responses[0]) == [1] * 5


def test_no_padding_with_another_end_id() -> None:
    """The generation config names a second end id, as chat models do."""
    env = environment(lambda text: "ends#" if text.endswith("a") else "goes on for a longer while<submit>")
    env.model.generation_config.eos_token_id = [1, env.tokenizer.convert_tokens_to_ids("#")]
    _, responses, _, _, histories = env.run(["a", "b"])
    assert text_of(responses[0]) == "ends#"
    assert histories[0].completed


def test_no_padding_behind_a_stop_string() -> None:
    env = environment(
        lambda text: "<submit>" if text.endswith("a") else "goes on for a longer while<submit>",
        generation_kwargs={"max_new_tokens": 60, "pad_token_id": 7},
    )
    _, responses, _, _, _ = env.run(["a", "b"])
    assert text_of(responses[0]) == "<submit>"
