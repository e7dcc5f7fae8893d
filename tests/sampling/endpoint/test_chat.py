"""Conversations with the `openai` package: what a client gets, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.environment.chat_tools import FORMATS
from tests.sampling.endpoint.endpoint_tools import CALL, END, Scripted, ask, client, endpoint
from trl_step.sampling import Endpoint, ServedEpisodes

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {"first": {"type": "integer"}, "second": {"type": "integer"}},
            },
        },
    }
]
ASKS = CALL.format('{"name": "add", "arguments": {"first": 2,  "second": 3}}')  # two spaces: no template writes it so


def calculator(text: str) -> str:
    """Calls the tool, then says what it replied."""
    if "<tool_response>" not in text:
        return f"Let me see. {ASKS}{END}"
    reply = text.rpartition("<tool_response>\n")[2].partition("\n")[0]
    return f"It is {reply}.{END}"


@pytest.fixture
def sampler() -> Scripted:
    return Scripted(calculator)


@pytest.fixture
def served(sampler: Scripted) -> Iterator[Endpoint]:
    with endpoint(sampler) as running:
        yield running


def texts(sampler: Scripted, episodes: ServedEpisodes) -> list[tuple[str, str, str]]:
    """Query, response, and what of the response the model wrote, of each sequence."""

    def text(tokens: torch.Tensor) -> str:
        return sampler.tokenizer.decode(tokens.tolist())

    triples = zip(episodes.queries, episodes.responses, episodes.response_masks, strict=True)
    return [(text(query), text(response), text(response[mask.bool()])) for query, response, mask in triples]


def add_by_agent(of: Any, **more: Any) -> str:
    """What an agent does: it runs the calls until there is none."""
    messages: list[Any] = [{"role": "user", "content": "What is 2 + 3?"}]
    while True:
        said = of.chat.completions.create(model="policy", messages=messages, tools=TOOLS, **more).choices[0]
        messages.append(said.message.model_dump(exclude_none=True))
        if said.finish_reason != "tool_calls":
            return said.message.content
        for call in said.message.tool_calls:
            result = sum(json.loads(call.function.arguments).values())
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


def test_a_conversation_with_a_tool(sampler: Scripted, served: Endpoint) -> None:
    assert add_by_agent(client(served, "task 7/a")) == "It is 5."
    assert "<tools>" in sampler.prompts[0]
    episodes = served.episodes()
    assert episodes.ids == ["task 7/a"]
    ((query, response, wrote),) = texts(sampler, episodes)
    assert query == sampler.prompts[0]
    assert wrote == f"Let me see. {ASKS}{END}It is 5.{END}"
    assert query + response == f"{sampler.prompts[1]}It is 5.{END}"
    assert response == (
        f"Let me see. {ASKS}{END}\n<|im_start|>user\n<tool_response>\n5\n</tool_response>{END}\n"
        f"<|im_start|>assistant\nIt is 5.{END}"
    )
    assert episodes.sampling_logprobs is not None
    first = len(sampler.ids(f"Let me see. {ASKS}{END}"))
    written = episodes.sampling_logprobs[0][episodes.response_masks[0].bool()]
    assert torch.equal(written[:first], -torch.arange(first) / 8)
    assert torch.equal(written[first:], -torch.arange(len(written) - first) / 8)
    assert not episodes.sampling_logprobs[0][~episodes.response_masks[0].bool()].any()
    assert episodes.responses[0].dtype == episodes.response_masks[0].dtype == torch.long
    assert not served.episodes().ids, "what was taken is kept no more"


def test_a_call_in_the_form_of_the_api(served: Endpoint) -> None:
    answer = client(served).chat.completions.create(**ask("2 + 3?", tools=TOOLS))
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "add")
    assert json.loads(call.function.arguments) == {"first": 2, "second": 3}
    assert len(call.id) == 9
    assert call.id.isalnum()


@pytest.mark.parametrize("kind", FORMATS)
def test_calls_in_the_formats_of_templates(kind: str) -> None:
    form = FORMATS[kind]
    call = '{"name": "add", "arguments": {"first": 3}}'
    with endpoint(Scripted(lambda text: form.call.format(call) + form.end, kind)) as served:
        choice = client(served).chat.completions.create(**ask("Hi", tools=TOOLS)).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert [each.function.name for each in choice.message.tool_calls] == ["add"]
        stopped = client(served).chat.completions.create(**ask("Hi", tools=TOOLS, stop=[form.end])).choices[0]
        assert stopped.message.tool_calls[0].function == choice.message.tool_calls[0].function


@pytest.mark.parametrize("more", [{}, {"tools": TOOLS, "tool_choice": "none"}], ids=["no tools", "none"])
def test_without_tools_a_call_is_text(served: Endpoint, more: Any) -> None:
    choice = client(served).chat.completions.create(**ask("2 + 3?", **more)).choices[0]
    assert choice.message.content == f"Let me see. {ASKS}"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"


def test_a_wrong_call_is_text(served: Endpoint, sampler: Scripted) -> None:
    sampler.script = lambda text: f"{ASKS}<tool_call>add(2, 3)</tool_call>{END}"
    choice = client(served).chat.completions.create(**ask("2 + 3?", tools=TOOLS)).choices[0]
    assert choice.message.tool_calls is None
    assert choice.message.content == f"{ASKS}<tool_call>add(2, 3)</tool_call>"


def test_streams(served: Endpoint, sampler: Scripted) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client(served, "one").chat.completions.create(**ask("2 + 3?", tools=TOOLS, n=2, **options)))
    for index in (0, 1):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert "".join(choice.delta.content or "" for choice in own) == "Let me see."
        (call,) = [call for choice in own for call in choice.delta.tool_calls or []]
        assert (call.index, call.function.name) == (0, "add")
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["tool_calls"]
    written = len(sampler.ids(f"Let me see. {ASKS}{END}"))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 2 * written
    assert served.episodes().ids == ["one", "one"]


def test_a_stream_without_usage_and_of_plain_text(served: Endpoint) -> None:
    chunks = list(client(served).completions.create(model="policy", prompt="Hi", stream=True, logprobs=0))
    assert all(chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].text for chunk in chunks) == f"Let me see. {ASKS}"
    assert chunks[0].choices[0].logprobs.token_logprobs[:2] == [0, -0.125]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_usage_log_probs_and_the_limit(served: Endpoint) -> None:
    answer = client(served).chat.completions.create(**ask("Hi", max_tokens=3, logprobs=True, n=2))
    assert [choice.message.content for choice in answer.choices] == ["Let", "Let"]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert [entry.logprob for entry in answer.choices[1].logprobs.content] == [0, -0.125, -0.25]
    assert [entry.token for entry in answer.choices[0].logprobs.content] == ["L", "e", "t"]
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6


def test_stop_strings_are_recorded_and_not_shown(served: Endpoint, sampler: Scripted) -> None:
    sampler.script = lambda text: "one\ntwo\n\n"
    choice = client(served).chat.completions.create(**ask("Count", stop="\n\n")).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("one\ntwo", "stop")
    assert sampler.batches[0][2]["stop_strings"] == ["\n\n"]
    assert texts(sampler, served.episodes())[0][2] == "one\ntwo\n\n"


def test_turns_that_a_stop_string_or_the_limit_ended_are_closed(served: Endpoint, sampler: Scripted) -> None:
    """The model's next prompt is what the template would have made of a complete turn."""
    sampler.script = lambda text: "one;"
    of, turn = client(served), {"role": "user", "content": "Go on"}
    first = of.chat.completions.create(**ask("Count", stop=";")).choices[0].message
    of.chat.completions.create(model="policy", messages=[*ask("Count")["messages"], first, turn], max_tokens=2)
    assert sampler.prompts[1].endswith(f"assistant\none;{END}\n<|im_start|>user\nGo on{END}\n<|im_start|>assistant\n")
    ((_, response, wrote),) = texts(sampler, served.episodes())
    assert wrote == "one;on"
    assert response.endswith("assistant\non")


def test_a_turn_cut_at_a_token_of_the_ending_is_closed_as_well(served: Endpoint, sampler: Scripted) -> None:
    """`\\n` follows the end token in the template; a turn that is cut after its own `\\n` lacks both."""
    sampler.script = lambda text: "one\ntwo"
    of = client(served).chat.completions
    first = of.create(**ask("Count", max_tokens=4)).choices[0].message
    of.create(model="policy", messages=[*ask("Count")["messages"], first, {"role": "user", "content": "Go on"}])
    assert f"assistant\none\n{END}\n<|im_start|>user\nGo on" in sampler.prompts[1]
    assert len(served.episodes().ids) == 1


def test_the_settings_that_the_sampler_is_given(served: Endpoint, sampler: Scripted) -> None:
    of = client(served).chat.completions
    of.create(**ask(temperature=0.5, top_p=0.9, max_completion_tokens=5, n=3, extra_body={"top_k": 7}))
    of.create(**ask(temperature=0))
    of.create(**ask())
    assert sampler.batches == [
        (1, 3, {"max_new_tokens": 5, "do_sample": True, "temperature": 0.5, "top_p": 0.9, "top_k": 7}),
        (1, 1, {"max_new_tokens": 512, "do_sample": False}),
        (1, 1, {"max_new_tokens": 512, "do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
    ]


def test_completions_of_texts_and_tokens(served: Endpoint, sampler: Scripted) -> None:
    sampler.script = lambda text: text[-1] + END
    prompts = ["ab", "cd"]
    answer = client(served).completions.create(model="policy", prompt=prompts, n=2)
    assert [choice.text for choice in answer.choices] == ["b", "b", "d", "d"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    ids = [sampler.ids("xy"), sampler.ids("z")]
    answer = client(served).completions.create(model="policy", prompt=ids)
    assert [choice.text for choice in answer.choices] == ["y", "z"]
    assert answer.usage.prompt_tokens == 3
    answer = client(served).completions.create(model="policy", prompt=ids[0])
    assert answer.choices[0].text == "y"


def test_the_models(served: Endpoint) -> None:
    assert [model.id for model in client(served).models.list()] == ["policy"]
    assert [model.id for model in client(served, "one").models.list()] == ["policy"]


def test_text_parts_and_a_developer(served: Endpoint, sampler: Scripted) -> None:
    parts = [{"type": "text", "text": "2 + "}, {"type": "text", "text": "3?"}]
    messages: Any = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    client(served).chat.completions.create(
        model="policy", messages=messages, user="me", metadata={"a": "b"}, store=True
    )
    assert sampler.prompts[0].startswith(f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\n2 + 3?{END}")


def test_options_of_the_template() -> None:
    sampler = Scripted()
    sampler.tokenizer.chat_template = "{{ mood }}: {{ messages[0].content }}"
    with endpoint(sampler, template_options={"mood": "brief"}) as served:
        client(served).chat.completions.create(**ask("Hi"))
    assert sampler.prompts == ["brief: Hi"]
