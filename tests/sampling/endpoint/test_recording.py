"""Which calls become one sequence, and which become several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from openai import BadRequestError

from tests.sampling.endpoint.endpoint_tools import END, Scripted, ask, client, endpoint
from trl_step.sampling import Endpoint
from trl_step.sampling.endpoint.messages import Conversation, read_messages
from trl_step.sampling.endpoint.recording import Answer, Recorder

# --- the recorder ------------------------------------------------------------------------------------------------


def tokens(*ids: int) -> torch.Tensor:
    return torch.tensor(ids)


def answer(*ids: int, known: bool = True) -> Answer:
    return Answer(tokens(*ids), -torch.arange(1.0, len(ids) + 1) if known else None, True)


def test_a_prompt_that_continues_joins() -> None:
    recorder = Recorder(9)
    recorder.add("a", "call 1", tokens(5, 6), [answer(7, 1)])
    recorder.add("a", "call 2", tokens(5, 6, 7, 1, 8, 9), [answer(3)])
    recorder.add("a", "call 3", tokens(5, 6, 7, 1, 8, 9, 3), [answer(4)])  # nothing between
    ids, queries, responses, masks, logprobs = recorder.take()
    assert ids == ["a"]
    assert queries[0].tolist() == [5, 6]
    assert responses[0].tolist() == [7, 1, 8, 9, 3, 4]
    assert masks[0].tolist() == [1, 1, 0, 0, 1, 1]
    assert logprobs is not None
    assert logprobs[0].tolist() == [-1, -2, 0, 0, -1, -1]


@pytest.mark.parametrize("prompt", [(5, 6, 7, 2, 8), (5, 9, 7, 1, 8), (5, 6, 7), (5, 6), (0, 5, 6, 7, 1)])
def test_a_prompt_that_differs_splits(prompt: tuple[int, ...]) -> None:
    recorder = Recorder(9)
    recorder.add("a", "call 1", tokens(5, 6), [answer(7, 1)])
    recorder.add("a", "call 2", tokens(*prompt), [answer(3)])
    served = recorder.take()
    assert served.ids == ["a", "a"]
    assert served.queries[1].tolist() == list(prompt)
    assert served.responses[1].tolist() == [3]


def test_the_longest_sequence_is_joined_and_other_answers_begin_their_own() -> None:
    recorder = Recorder(9)
    recorder.add("a", "call", tokens(5), [answer(6), answer(6, 7)])
    recorder.add("a", "call", tokens(5, 6, 7, 8), [answer(1), answer(2)])
    served = recorder.take()
    assert [response.tolist() for response in served.responses] == [[6], [6, 7, 8, 1], [2]]
    assert served.queries[2].tolist() == [5, 6, 7, 8], "what is joined above is not trained again"


def test_episodes_are_kept_apart() -> None:
    recorder = Recorder(9)
    for episode in ("a", None, "b"):
        recorder.add(episode, "call 1", tokens(5), [answer(6)])
        recorder.add(episode, "call 2", tokens(5, 6, 7), [answer(8)])
    recorder.add(None, "call 3", tokens(5, 6, 7, 8, 9), [answer(8)])
    assert recorder.take(["call 1"]).responses[0].tolist() == [6, 7, 8, 9, 8]
    recorder.add(None, "call 4", tokens(5, 6, 7, 8, 9), [answer(8)])
    assert recorder.take(["b", "c", "b"]).ids == ["b"]
    assert recorder.take().ids == ["a", "call 4"]
    assert recorder.take().ids == []


def test_the_order_is_that_which_was_asked_for() -> None:
    recorder = Recorder(9)
    for episode in ("a", "b", "a", "c"):
        recorder.add(episode, "call", tokens(5), [answer(6)])
    assert recorder.take(["b", "a"]).ids == ["b", "a", "a"]
    assert recorder.take().ids == ["c"]


def test_log_probs_that_are_not_known() -> None:
    recorder = Recorder(9)
    recorder.add("a", "call", tokens(5), [answer(6)])
    recorder.add("a", "call", tokens(5, 6), [answer(7, known=False)])
    assert recorder.take().sampling_logprobs is None


def test_the_oldest_episode_makes_room() -> None:
    recorder = Recorder(2)
    recorder.add("a", "call", tokens(5), [answer(6), answer(7)])
    with pytest.warns(UserWarning, match="the oldest episodes are dropped"):
        recorder.add("b", "call", tokens(5), [answer(6)])
    recorder.add("c", "call", tokens(5), [answer(6)])
    assert recorder.take().ids == ["b", "c"]
    nothing = Recorder(0)
    nothing.add("a", "call", tokens(5), [answer(6)])
    assert nothing.take().ids == []


def test_a_conversation_is_known_again() -> None:
    recorder = Recorder(9)
    given: list[Any] = [{"role": "user", "content": "Hi"}]
    reply: Any = {"role": "assistant", "content": " Yes ", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"first": 2}}}]}  # fmt: skip
    said = answer(7)._replace(conversation=Conversation([*given, reply], []))
    recorder.add("a", "call", tokens(5), [said])
    written_anew = {"role": "assistant", "content": "Yes", "refusal": None, "tool_calls": [
        {"id": "other", "type": "function", "function": {"name": "add", "arguments": '{ "first":2}'}}]}  # fmt: skip
    more = {"role": "tool", "tool_call_id": "other", "content": "5"}

    def known(messages: list[Any], tools: Any = (), episode: str | None = "a") -> bool:
        return recorder.continued(episode, Conversation(read_messages(messages), list(tools))) is not None

    assert known([*given, written_anew, more])
    assert not known([*given, written_anew]), "nothing follows"
    assert not known([*given, {**written_anew, "content": "No"}, more])
    assert not known([*given, {**written_anew, "tool_calls": None}, more])
    assert not known([{"role": "user", "content": "Ho"}, written_anew, more])
    assert not known([*given, written_anew, more], [{"type": "function"}]), "other tools are another prompt"
    assert not known([*given, written_anew, more], episode="b")
    assert not known([*given, written_anew, more], episode=None)


# --- through an endpoint ------------------------------------------------------------------------------------------


@pytest.fixture
def sampler() -> Scripted:
    return Scripted(lambda text: f"<b>{text.count('assistant')}</b> {END}")


@pytest.fixture
def served(sampler: Scripted) -> Iterator[Endpoint]:
    with endpoint(sampler) as running:
        yield running


def chat(of: Any, messages: list[Any], **more: Any) -> list[Any]:
    """The messages with the model's next turn."""
    reply = of.chat.completions.create(model="policy", messages=messages, **more).choices[0].message
    return [*messages, {"role": "assistant", "content": reply.content}]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_without_an_episode_each_conversation_is_one(served: Endpoint) -> None:
    """Conversations that begin alike and take turns; the first call's id is their name."""
    of = client(served)
    first = of.chat.completions.create(**ask("Hi"))
    second = chat(of, [user("Ho")])
    said = [user("Hi"), {"role": "assistant", "content": first.choices[0].message.content}]
    for text in ("one", "two"):
        said = chat(of, [*said, user(text)])
        second = chat(of, [*second, user(text)])
    episodes = served.episodes()
    assert len(episodes.ids) == 2
    assert episodes.ids[0] == first.id
    assert [int(mask.sum()) for mask in episodes.response_masks] == [3 * len("<b>1</b> ?")] * 2


def test_a_header_names_the_episode_for_clients_with_one_url(served: Endpoint) -> None:
    """Two conversations that begin with the same words; the URL's name goes before the header's."""
    headers = {"a": {"X-Session-ID": "a"}, "b": {"X-Session-ID": "b"}}
    for name in ("a", "b", "a"):
        client(served).chat.completions.create(**ask("Hi"), extra_headers=headers[name])
    client(served, "c").chat.completions.create(**ask("Hi"), extra_headers=headers["a"])
    assert served.episodes().ids == ["a", "a", "b", "c"]
    with pytest.raises(BadRequestError, match="the id of an episode has 1 to 128 characters, got 129"):
        client(served).chat.completions.create(**ask("Hi"), extra_headers={"X-Session-ID": "a" * 129})


def test_one_episode_with_several_conversations(served: Endpoint) -> None:
    """Such as an agent that asks another one."""
    of = client(served, "a")
    main = chat(of, [user("Hi")])
    chat(of, [user("a question of the agent")])
    chat(of, [*main, user("go on")])
    episodes = served.episodes()
    assert episodes.ids == ["a", "a"]
    assert [int(mask.sum()) for mask in episodes.response_masks] == [2 * len("<b>1</b> ?"), len("<b>1</b> ?")]


def test_a_history_that_the_client_changed_splits(served: Endpoint, sampler: Scripted) -> None:
    of = client(served, "a")
    messages = chat(of, [user("Hi")])
    messages[-1] = {"role": "assistant", "content": "something else"}
    chat(of, [*messages, user("go on")])
    episodes = served.episodes()
    assert episodes.ids == ["a", "a"]
    assert "something else" in sampler.prompts[1]
    assert sampler.tokenizer.decode(episodes.queries[1].tolist()) == sampler.prompts[1]
    assert episodes.response_masks[1].tolist() == [1] * len("<b>1</b> ?")


def test_two_continuations_of_one_conversation(served: Endpoint) -> None:
    """The first goes on; the second begins anew, with the turns before in its query."""
    of = client(served, "a")
    messages = chat(of, [user("Hi")])
    chat(of, [*messages, user("one")])
    chat(of, [*messages, user("two")])
    episodes = served.episodes()
    masks = [int(mask.sum()) for mask in episodes.response_masks]
    assert masks == [2 * len("<b>1</b> ?"), len("<b>1</b> ?")]
    assert len(episodes.queries[1]) > len(episodes.queries[0])


def test_other_tools_split(served: Endpoint) -> None:
    of = client(served, "a")
    messages = chat(of, [user("Hi")])
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    chat(of, [*messages, user("one")], tools=tools)
    assert served.episodes().ids == ["a", "a"]


def test_a_template_that_rewrites_turns_changes_nothing() -> None:
    """The context is what the model wrote, whatever the template leaves of earlier turns."""
    sampler = Scripted(kind="rewriting")
    with endpoint(sampler) as served:
        messages = chat(client(served, "a"), [user("Hi")])
        chat(client(served, "a"), [*messages, user("one")])
    assert f"assistant\nyes{END}\n<|im_start|>user\none" in sampler.prompts[1]
    assert served.episodes().ids == ["a"]


def test_completions_join_where_the_tokens_do(served: Endpoint, sampler: Scripted) -> None:
    sampler.script = lambda text: "b"
    of = client(served, "a").completions
    for prompt in ("a", "ab c", "ab c", "xab cb"):
        of.create(model="policy", prompt=prompt, max_tokens=1)
    episodes = served.episodes()
    texts = [sampler.tokenizer.decode(response.tolist()) for response in episodes.responses]
    assert texts == ["b cb", "b", "b"]
