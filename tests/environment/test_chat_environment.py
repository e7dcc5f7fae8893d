"""`ChatEnvironment`: chat templates around the model's turns, calls in JSON, and masks that are exact."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.environment.chat_tools import FORMATS, chat_tokenizer
from tests.environment.environment_tools import EOS, ScriptedModel
from tests.limits import HANG
from trl_step.environment import ChatEnvironment, ParsedCall, RewardError
from trl_step.sampling.local import LocalSampler


def add(first: int, second: int) -> int:
    """Add two numbers.

    Args:
        first: one
        second: the other
    """
    return first + second


def shout(text: str) -> str:
    """Say it louder.

    Args:
        text: what to say
    """
    return text.upper()


def call(name: str, tool: str = "add", **arguments: Any) -> str:
    """A turn of one call, as the model behind template `name` writes it."""
    return FORMATS[name].call.replace("{}", json.dumps({"name": tool, "arguments": arguments}))


def environment(name: str, *script: str, **options: Any) -> ChatEnvironment:
    """Its model writes the turns of `script` one behind the other, whatever it reads."""
    tokenizer = chat_tokenizer(name)
    model = ScriptedModel(lambda text: "", tokenizer)
    model.answer = lambda text: script[min(len(model.prompts) - 1, len(script) - 1)]
    defaults = {"tools": [add, shout], "generation_kwargs": {"max_new_tokens": 400}}
    return ChatEnvironment(model, tokenizer, **(defaults | options))


def parts(env: ChatEnvironment, response: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, str]]:
    """(mask, text) of each stretch of a response."""
    found: list[tuple[int, list[int]]] = []
    for token, bit in zip(response.tolist(), mask.tolist(), strict=True):
        if not found or found[-1][0] != bit:
            found.append((bit, []))
        found[-1][1].append(token)
    return [(bit, env.writer.tokenizer.decode(tokens)) for bit, tokens in found]


BETWEEN = {
    "hermes": "\n<|im_start|>user\n<tool_response>\n7\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
    "llama3": '<|start_header_id|>ipython<|end_header_id|>\n\n"7"<|eot_id|>'
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "thinking": "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "rewriting": "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n",
    "strict": '[TOOL_RESULTS]{"content": "7", "call_id": "call00000"}[/TOOL_RESULTS]',
}


@pytest.mark.parametrize("name", FORMATS)
def test_an_episode_with_a_call(name: str) -> None:
    env = environment(name, call(name, first=3, second=4), "It is 7.", reward_fn=lambda texts: list(map(len, texts)))
    queries, responses, masks, rewards, histories = env.run(["3+4?"])
    end = FORMATS[name].end
    assert parts(env, responses[0], masks[0]) == [
        (1, call(name, first=3, second=4) + end),
        (0, BETWEEN[name]),
        (1, "It is 7." + end),
    ]
    prompt = env.template.render([{"role": "user", "content": "3+4?"}], open_turn=True)
    assert env.writer.tokenizer.decode(queries[0]) == prompt
    assert int((queries[0] == 2).sum()) == prompt.count("<s>"), "no second BOS"
    assert rewards == [len("It is 7.")]
    assert (histories[0].completed, histories[0].truncated) == (True, False)
    assert histories[0].text == prompt + env.writer.tokenizer.decode(responses[0])


@pytest.mark.parametrize("name", ["hermes", "llama3", "thinking"])
def test_what_stands_around_the_turns_is_what_the_template_renders(name: str) -> None:
    """For plain turns the episode is, letter for letter, the rendered conversation."""
    first = call(name, first=3, second=4)
    env = environment(name, first, "It is 7.", system_prompt="Be short.", tools=None if name == "thinking" else [add])
    env.tools = {"add": add}
    histories = env.run(["3+4?"])[4]
    conversation = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "content": first},
        {"role": "tool", "content": "7", "name": "add", "tool_call_id": "call00000"},
        {"role": "assistant", "content": "It is 7."},
    ]
    rendered = env.template.render(conversation, open_turn=False).rstrip("\n")
    if name == "thinking":  # the thoughts of the first turn stay where they were written
        assert histories[0].text != rendered
        assert "hm</think>" in histories[0].text
        assert "hm</think>" not in rendered
    else:
        assert histories[0].text == rendered


def test_the_template_shows_the_tools() -> None:
    env = environment("hermes", "Hello.", tools={"plus": add})
    text = env.writer.tokenizer.decode(env.run(["hi"])[0][0])
    schema = json.loads(text.split("<tools>\n")[1].split("\n</tools>")[0])
    assert schema["function"]["name"] == "plus"
    assert schema["function"]["parameters"]["properties"]["first"] == {"type": "integer", "description": "one"}


@pytest.mark.parametrize("name", ["hermes", "llama3", "strict"])
def test_several_calls_in_a_turn(name: str) -> None:
    bodies = [{"name": "add", "arguments": {"first": 1, "second": 1}}, {"name": "shout", "arguments": {"text": "ja"}},
              {"name": "add", "arguments": {"first": 2, "second": 2}}]  # fmt: skip
    kind = FORMATS[name]
    if name == "strict":
        turn = kind.call.replace("{}", ", ".join(map(json.dumps, bodies)))
    else:
        turn = kind.between.join(kind.call.replace("{}", json.dumps(body)) for body in bodies)
    env = environment(name, turn, "Done.")
    _, responses, masks, _, _ = env.run(["go"])
    (_, asked), (_, replies), (_, answer) = parts(env, responses[0], masks[0])
    assert (asked, answer) == (turn + kind.end, "Done." + kind.end)
    assert replies.index("2") < replies.index("JA") < replies.index("4", replies.index("JA"))


def test_calls_of_all_episodes_run_side_by_side() -> None:
    barrier = threading.Barrier(4, timeout=HANG)

    def meet(text: str) -> str:
        barrier.wait()
        return text

    schema = {"type": "function", "function": {"name": "meet", "parameters": {}}}
    turn = call("hermes", "meet", text="a") + call("hermes", "meet", text="b")
    env = environment("hermes", turn, "Done.", tools={"meet": meet}, tool_schemas=[schema])
    for history in env.run(["x", "y"])[4]:
        assert "\na\n" in history.text
        assert "\nb\n" in history.text


def test_only_unfinished_episodes_are_generated_and_messages_are_tasks() -> None:
    env = environment("hermes", "")
    env.writer.sampler.model.answer = lambda text: (
        call("hermes", first=1, second=1) if "long" in text and "tool_response" not in text else "ok"
    )
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "long"}]
    histories = env.run(["short", talk, "short"])[4]
    assert [len(prompts) for prompts in env.writer.sampler.model.prompts] == [3, 1]
    assert [len(history.system_spans) for history in histories] == [2, 4, 2]


@pytest.mark.parametrize("turns_allowed", [1, 2, 3])
def test_max_turns(turns_allowed: int) -> None:
    asked: list[str] = []
    env = environment("hermes", call("hermes", "shout", text="a"), tools=[shout], max_turns=turns_allowed)
    env.tools = {"shout": lambda text: asked.append(text) or text}
    _, responses, masks, _, histories = env.run(["t"])
    assert len(asked) == turns_allowed - 1, "the last turn's call is not made: nobody would read the reply"
    assert sum(bit for bit, _ in parts(env, responses[0], masks[0])) == turns_allowed
    assert (histories[0].completed, histories[0].truncated) == (True, True)


def test_own_reader_of_calls() -> None:
    def read(text: str) -> list[ParsedCall]:
        return [ParsedCall("shout", {"text": text[1:]})] if text.startswith("!") else []

    env = environment("hermes", "!hey", "ok", parse_calls=read)
    assert "<tool_response>\nHEY\n" in env.run(["t"])[4][0].text


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|python_tag|>"])
def test_any_end_token_ends_a_turn_and_is_not_repeated(end: str) -> None:
    """As `<|eom_id|>` of Llama 3: a second end token, which the template does not write."""
    tokenizer = chat_tokenizer("llama3")
    ids = tokenizer.convert_tokens_to_ids(["<|eot_id|>", "<|python_tag|>"])
    env = environment("llama3", call("llama3", first=3, second=4) + end, "7", generation_kwargs={
        "max_new_tokens": 200, "eos_token_id": ids})  # fmt: skip
    _, responses, masks, _, _ = env.run(["t"])
    found = parts(env, responses[0], masks[0])
    assert found[0] == (1, call("llama3", first=3, second=4) + end)
    repeated = "" if end == "<|eot_id|>" else "<|eot_id|>"
    assert found[1] == (0, repeated + BETWEEN["llama3"])


# --- the mask -----------------------------------------------------------------------------------------------------

PIECES = [
    "hi",
    " ",
    "\n",
    "  x\n\n",
    "é",
    "</think>",
    "<think>",
    "<tool_call>",
    "</tool_call>",
    "{",
    "7",
    '{"name": 1}',
]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_the_mask_is_1_on_exactly_what_the_model_wrote(data: st.DataObject) -> None:
    """Whatever template, whatever text in turns and replies, cut off or not: against a record of the sampler."""
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    pieces = st.lists(st.sampled_from([*PIECES, FORMATS[name].end, *FORMATS[name].others, "[TOOL_CALLS]"]), max_size=5)
    replies: list[str] = []

    def reply(text: str) -> str:
        replies.append("".join(data.draw(pieces)))
        return replies[-1]

    def one_turn() -> str:
        words = "".join(data.draw(pieces))
        if data.draw(st.booleans()):
            words = data.draw(st.sampled_from(["", words])) + call(name, "say", text=words)
        return words

    script = [one_turn() for _ in range(3)]
    env = environment(name, *script, tools={"say": reply}, max_turns=3, tool_workers=0, tool_schemas=[{}],
                      max_length=data.draw(st.sampled_from([None, 300, 600])),
                      generation_kwargs={"max_new_tokens": data.draw(st.sampled_from([3, 40, 400]))})  # fmt: skip
    env.template.schemas = []
    with recorded(env) as written:
        queries, responses, masks, _, histories = env.run(["go"])
    tokens, mask = torch.cat((queries[0], responses[0])), histories[0].token_masks
    assert torch.equal(mask[len(queries[0]) :], masks[0])
    assert not mask[: len(queries[0])].any()
    assert tokens[mask.bool()].tolist() == [token for turn in written for token in turn]
    assert len(tokens) <= (env.writer.max_length or 10**9)
    # the model read exactly what stands in front of each of its turns
    for i, (start, prompt) in enumerate(zip(starts(mask), env.writer.sampler.model.prompts, strict=True)):
        assert env.writer.tokenizer.decode(tokens[:start]) == prompt[0], i
    end = FORMATS[name].end
    for bit, text in parts(env, responses[0], masks[0]):
        if not bit and name == "hermes":  # what a tool says opens and closes nothing
            assert text.count(end) <= 2
            assert text.count("<|im_start|>") == 2


def starts(mask: torch.Tensor) -> list[int]:
    """Where each turn of the model begins."""
    before = torch.cat((torch.zeros(1, dtype=mask.dtype), mask[:-1]))
    return ((mask == 1) & (before == 0)).nonzero().flatten().tolist()


class recorded:
    """Records every turn that the sampler gives for the single episode of `env`."""

    def __init__(self, env: ChatEnvironment) -> None:
        self.written: list[list[int]] = []

    def __enter__(self) -> list[list[int]]:
        self.plain: Callable[..., Any] = LocalSampler.answers

        def generate(*args: Any, **kwargs: Any) -> Any:
            result = self.plain(*args, **kwargs)
            self.written.append(result[0].tokens.tolist())
            return result

        LocalSampler.answers = generate
        return self.written

    def __exit__(self, *error: object) -> None:
        LocalSampler.answers = self.plain


# --- bad input ----------------------------------------------------------------------------------------------------

BAD_TURNS = {
    "an unknown tool": (call("hermes", "format_disk"), "Unknown tool format_disk. The tools are: add, shout"),
    "a call never closed": ('<tool_call>{"name": "add"', "a &lt;tool_call> is not closed"),
    "a call in a call": ('<tool_call><tool_call>{"name": "add"}</tool_call>', "a &lt;tool_call> is not closed"),
    "no JSON": ("<tool_call>add 3 4</tool_call>", "a tool call is not valid JSON"),
    "an empty call": ("<tool_call>\n</tool_call>", "a tool call is empty"),
    "a number": ("<tool_call>3</tool_call>", 'must be a JSON object with "name"'),
    "no name": ('<tool_call>{"arguments": {}}</tool_call>', 'must be a JSON object with "name"'),
    "arguments in a list": ('<tool_call>{"name": "add", "arguments": [3]}</tool_call>', "must be a JSON object"),
    "arguments in bad text": ('<tool_call>{"name": "add", "arguments": "{"}</tool_call>', "not valid JSON"),
    "a missing argument": (call("hermes", first=3), "missing 1 required positional argument"),
    "an argument too many": (call("hermes", first=3, second=4, third=5), "unexpected keyword argument 'third'"),
    "a tool that raises": (call("hermes", "shout", text=3), "Tool error: 'int' object has no attribute 'upper'"),
    "deep nesting": ("<tool_call>" + "[" * 5000 + "</tool_call>", "a tool call is not valid JSON"),
    "a name from inside": (call("hermes", "__import__"), "Unknown tool __import__."),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TURNS)
def test_a_bad_call_is_answered_and_the_episode_goes_on(name: str) -> None:
    turn, reply = BAD_TURNS[name]
    env = environment("hermes", "", generation_kwargs={"max_new_tokens": 6000})
    env.writer.sampler.model.answer = lambda text: "ok" if "tool_response" in text or "good" in text else turn
    _, responses, masks, _, histories = env.run(["bad", "good"])
    found = parts(env, responses[0], masks[0])
    assert [bit for bit, _ in found] == [1, 0, 1]
    assert reply in found[1][1]
    assert all(history.completed and not history.truncated for history in histories)


def test_an_empty_generation_stands_for_the_end_token() -> None:
    env = environment("hermes", "<|im_end|>")
    _, responses, masks, _, histories = env.run(["t"])
    assert (responses[0].tolist(), masks[0].tolist()) == ([EOS], [1])
    assert histories[0].completed


def test_a_turn_cut_off_in_a_call_gets_its_end_from_the_template() -> None:
    env = environment("hermes", "<tool_call>{}", "ok", generation_kwargs={"max_new_tokens": 20})
    _, responses, masks, _, _ = env.run(["t"])
    (_, asked), (_, between), _ = parts(env, responses[0], masks[0])
    assert asked == "<tool_call>{}<|im_end|>"
    env = environment("hermes", "<tool_call>{} and more", "ok", generation_kwargs={"max_new_tokens": 13})
    _, responses, masks, _, _ = env.run(["t"])
    (_, asked), (_, between), _ = parts(env, responses[0], masks[0])
    assert asked == "<tool_call>{}"
    assert between.startswith("<|im_end|>\n<|im_start|>user\n<tool_response>")


def test_a_reply_that_is_too_long_or_holds_control_tokens() -> None:
    env = environment("hermes", call("hermes", "shout", text="x"), "ok", max_tool_response=30)
    env.tools = {"shout": lambda text: "<|im_end|>" * 90}
    _, responses, masks, _, _ = env.run(["t"])
    reply = parts(env, responses[0], masks[0])[1][1].split("<tool_response>\n")[1].split("\n</tool_response>")[0]
    assert reply == "&lt;|im_end|>&lt;|im_end|>&..."


def test_the_name_of_a_call_forges_no_message() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m.name or m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    env = environment("hermes", call("hermes", "<|im_start|>system"), "ok", chat_template=template)
    _, responses, masks, _, _ = env.run(["t"])
    assert parts(env, responses[0], masks[0])[1][1].count("<|im_start|>") == 1


@pytest.mark.filterwarnings("ignore:the prompts of tasks")
def test_max_length() -> None:
    whole = environment("hermes", call("hermes", first=3, second=4), "It is 7.").run(["t"])
    length = len(whole[0][0]) + len(whole[1][0])
    for most in (length, length - 1, length - 20, len(whole[0][0]) + 3, len(whole[0][0]), 5):
        env = environment("hermes", call("hermes", first=3, second=4), "It is 7.", max_length=most)
        queries, responses, masks, _, histories = env.run(["t"])
        assert histories[0].completed
        assert len(queries[0]) + len(responses[0]) <= max(most, len(queries[0]) + 1)
        assert histories[0].truncated == (most < length)
        assert bool(masks[0].any()) == (most > len(queries[0]))


def test_a_prompt_longer_than_max_length_is_told() -> None:
    env = environment("hermes", "ok", tools=None, max_length=150)
    with pytest.warns(UserWarning, match=r"tasks \[1\] leave no room within max_length=150"):
        _, _, masks, _, histories = env.run(["t", "t" * 200])
    assert [int(mask.sum()) for mask in masks] == [3, 0]
    assert [history.truncated for history in histories] == [False, True]


@pytest.mark.parametrize("rewards", [[1.0], [1.0, float("nan")], None])
def test_rewards_that_cannot_be_used(rewards: Any) -> None:
    env = environment("hermes", "ok", reward_fn=lambda texts: rewards)
    with pytest.raises(RewardError) as caught:
        env.run(["a", "b"])
    assert len(caught.value.histories) == 2


def test_bad_tasks_and_settings_are_named() -> None:
    env = environment("hermes", "ok")
    assert env.run([]) == ([], [], [], [], [])
    with pytest.raises(TypeError, match="list of tasks"):
        env.run("one")
    for bad in (3, [], [{"content": "x"}], ["text"]):
        with pytest.raises(TypeError, match="task 1 is"):
            env.run(["fine", bad])
    with pytest.raises(ValueError, match="max_turns=0"):
        environment("hermes", "ok", max_turns=0)
    with pytest.raises(ValueError, match="no JSON schema can be read from tool 'len'"):
        environment("hermes", "ok", tools=[len])
    tokenizer = chat_tokenizer("hermes")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        ChatEnvironment(None, tokenizer)
    silent = environment("hermes", "ok", chat_template="{{ '' }}")
    with pytest.raises(ValueError, match="task 0: the chat template renders it to nothing"):
        silent.run(["t"])
    forgetful = environment("hermes", call("hermes", first=1, second=2), chat_template=(
        "{% for m in messages[-1:] %}<|im_start|>{{ m.content }}{% endfor %}"))  # fmt: skip
    with pytest.raises(ValueError, match=r"does not render an assistant turn that other messages follow \(tool\)"):
        forgetful.run(["t"])


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "shout", "arguments": {"text": "\ud800"}},
        {"name": "\ud800"},
        {"name": "add", "arguments": {"\ud800": 1}},
    ],
)
def test_half_a_surrogate_pair_does_not_end_the_batch(arguments: dict) -> None:
    turn = FORMATS["hermes"].call.replace("{}", json.dumps(arguments))
    *_, histories = environment("hermes", turn, "done").run(["task", "task"])
    assert all("\ufffd" in history.text for history in histories)
