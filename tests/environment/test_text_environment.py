"""`TextEnvironment`: whole episodes with a scripted model, and every kind of bad input."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from tests.environment.environment_tools import (
    EOS,
    ScriptedModel,
    byte_tokenizer,
    environment,
    in_turn,
    text_of,
    tiny_gpt2,
)
from tests.limits import HANG
from trl_step.environment import RewardError, TextEnvironment, TextHistory

CALL = "<request><echo>hi<call>"


def test_an_episode_from_task_to_submit() -> None:
    env = environment(in_turn(CALL, "so: hi<submit> and more"), prompt="P:")
    queries, responses, masks, rewards, histories = env.run(["t"])
    assert text_of(queries[0]) == "<s>P:t"
    assert text_of(responses[0]) == CALL + "hi<response>so: hi<submit>"
    assert text_of(responses[0][masks[0].bool()]) == CALL + "so: hi<submit>"
    assert text_of(responses[0][~masks[0].bool()]) == "hi<response>"
    assert histories[0].text == "P:t" + CALL + "hi<response>so: hi<submit>"
    assert rewards == [float(len("so: hi<submit>"))]
    assert histories[0].completed
    assert not histories[0].truncated


def test_only_unfinished_episodes_are_generated() -> None:
    answers = {"short": "done<submit>", "long": CALL}
    env = environment(lambda text: answers["long" if "long" in text and text.count("<response>") < 2 else "short"])
    *_, histories = env.run(["long one", "short one", "long two"])
    assert [len(prompts) for prompts in env.model.prompts] == [3, 2, 2]
    assert [len(history.system_spans) for history in histories] == [6, 2, 6]


def test_nothing_is_asked_of_the_model_once_all_are_completed() -> None:
    turns, checks = [], []

    class Own(TextEnvironment):
        def generate(self, histories):
            turns.append(len(histories))
            return super().generate(histories)

        def tasks_end_check(self, histories, model_turn=True):
            checks.append(model_turn)
            return super().tasks_end_check(histories, model_turn=model_turn)

    tokenizer = byte_tokenizer()
    env = Own(ScriptedModel(in_turn("<submit>"), tokenizer), tokenizer)
    *_, histories = env.run(["a", "b"])
    assert turns == [2]
    assert checks == [True, False]
    env.model = None
    assert env.generate(histories) is histories


def test_max_turns() -> None:
    for turns in (1, 2, 4):
        env = environment(in_turn(CALL), max_turns=turns)
        *_, histories = env.run(["t"])
        assert histories[0].text == "t" + turns * (CALL + "hi<response>")
        assert not histories[0].completed


def test_settings_of_the_constructor() -> None:
    class Search:
        def __call__(self, query: str) -> str:
            return query

    env = environment(in_turn(""), tools=[Search()], prompt="I am a prompt!\n", max_tool_reponse=7)
    assert env.prompt == "I am a prompt!\n"
    assert list(env.tools) == ["Search"]
    assert env.max_tool_response == 7
    assert environment(in_turn(""), max_tool_reponse=7, max_tool_response=9).max_tool_response == 9
    assert env.tool_runner.timeout == 60.0


def test_step_takes_any_history() -> None:
    env = environment(in_turn(""), tools={"dummy": lambda _: "a" * 1000})
    for most, want in ((100, "a" * 97 + "..."), (500, "a" * 497 + "..."), (1001, "a" * 1000)):
        env.max_tool_response = most
        history = env.step(TextHistory("<request><dummy>Hello<call>", torch.tensor([3, 4])))
        assert history.last_text_segment == want + env.response_token


def test_rewards_see_the_last_segments_and_the_callers_arguments() -> None:
    seen = {}

    def reward(texts, answers):
        seen["texts"] = texts
        return torch.tensor([1.0, 2.0]) if answers else [0, 0]

    env = environment(lambda text: f"{text[-1]}<submit>", reward_fn=reward)
    *_, rewards, _ = env.run(["a", "b"], answers=["x", "y"])
    assert seen["texts"] == ["a<submit>", "b<submit>"]
    assert [float(value) for value in rewards] == [1.0, 2.0]


def test_without_a_reward_function_rewards_stay_zero() -> None:
    assert environment(in_turn("<submit>"), reward_fn=None).run(["a"])[3] == [0.0]


def test_other_protocol_tokens() -> None:
    env = environment(in_turn("(ask)<echo>hi[go]", "ok[end] more"))
    env.request_token, env.call_token, env.response_token, env.submit_token = "(ask)", "[go]", "(re)", "[end]"
    env.model.answer = lambda text: "ok[end] more" if "(re)" in text else "(ask)<echo>hi[go]"
    *_, histories = env.run(["t"])
    assert histories[0].text == "t(ask)<echo>hi[go]hi(re)ok[end]"


def test_protocol_tokens_may_change_between_runs() -> None:
    env = environment(in_turn("<request><tool>x<call>", "<submit>"), tools={"tool": lambda _: "[end]"})
    assert "[end]<response>" in env.run(["t"])[4][0].text
    env.submit_token = "[end]"
    assert "&#91;end]<response>" in env.run(["t"])[4][0].text


def test_a_reply_does_not_submit_whoever_wrote_it() -> None:
    env = environment(in_turn(""))
    history = TextHistory("task", torch.tensor([5]))
    history.append_segment("<submit>", torch.tensor([6]), system=True)
    assert env.task_end_check(history, model_turn=False) == (False, False)
    history.append_segment("<submit>", torch.tensor([6]), system=False)
    assert env.task_end_check(history, model_turn=False) == (False, True)


def test_tools_of_one_turn_run_side_by_side() -> None:
    barrier = threading.Barrier(3, timeout=HANG)

    def meet(query: str) -> str:
        barrier.wait()
        return query

    env = environment(
        lambda text: "<submit>" if "<response>" in text else f"<request><meet>{text[-1]}<call>", tools={"meet": meet}
    )
    *_, histories = env.run(["a", "b", "c"])
    assert [history.text for history in histories] == [
        f"{task}<request><meet>{task}<call>{task}<response><submit>" for task in "abc"
    ]


def test_an_overridden_step_is_called_for_every_episode() -> None:
    class Own(TextEnvironment):
        def step(self, history):
            history.append_segment("own", torch.tensor([9]))
            history.complete()
            return history

    tokenizer = byte_tokenizer()
    env = Own(ScriptedModel(in_turn(CALL), tokenizer), tokenizer, prompt="", max_turns=1)
    *_, histories = env.run(["a", "b"])
    assert [history.last_text_segment for history in histories] == ["own", "own"]

    env = environment(in_turn(CALL), max_turns=1)
    env.step = lambda history: history.complete() or history
    assert env.run(["a"])[4][0].text == "a" + CALL


def test_overridden_generate_and_ends() -> None:
    """A subclass can bring its own sampler; it needs no model then."""

    class Own(TextEnvironment):
        def generate(self, histories):
            for history in histories:
                if not history.completed:
                    history.append_segment(CALL, torch.tensor([7, 8, 9]), system=False)
            return histories

    env = Own(None, byte_tokenizer(), tools={"echo": str}, max_turns=2)
    _, responses, masks, _, histories = env.run(["t"])
    assert histories[0].text == "t" + 2 * (CALL + "hi<response>")
    assert masks[0].sum() == 6
    assert len(responses[0]) == 6 + 2 * len("hi<response>")
    with pytest.raises(ValueError, match="no model"):
        TextEnvironment(None, byte_tokenizer())._generate_batched([torch.tensor([3])])


def test_batched_turns_equal_single_turns_on_a_real_model() -> None:
    tokenizer = byte_tokenizer()
    settings = {"do_sample": False, "max_new_tokens": 4, "pad_token_id": EOS}
    env = TextEnvironment(tiny_gpt2(), tokenizer, generation_kwargs=settings)
    queries = [tokenizer(text, return_tensors="pt").input_ids[0] for text in ("this is a test", "another one", "x")]
    together = env._generate_batched(queries, batch_size=2)
    single = [env._generate_batched([query], batch_size=1)[0] for query in queries]
    assert [row.tolist() for row in together] == [row.tolist() for row in single]
    *_, histories = env.run(["some task", "another"])
    assert all(history.completed for history in histories)


def test_stopping_criteria_of_the_caller_stay_in_force() -> None:
    stop_at = byte_tokenizer(bos=False)("!").input_ids[0]
    kwargs = {"max_new_tokens": 20, "stopping_criteria": [lambda ids, scores: ids[:, -1] == stop_at]}
    env = environment(in_turn("ab!cd"), generation_kwargs=kwargs)
    assert env.run(["t"])[4][0].text == "tab!"
    assert len(kwargs["stopping_criteria"]) == 1


def test_encoder_decoder() -> None:
    """The decoder's start token opens a turn; it is given, so it does not count, and does not end the episode."""
    tokenizer = byte_tokenizer()
    model = ScriptedModel(in_turn(CALL, "answer<submit>"), tokenizer, is_encoder_decoder=True)
    env = TextEnvironment(
        model, tokenizer, tools={"echo": str}, prompt="", generation_kwargs={"max_new_tokens": 30, "eos_token_id": EOS}
    )
    _, responses, masks, _, histories = env.run(["t"])
    assert responses[0][0] == EOS
    assert masks[0].tolist() == [0] + [1] * len(CALL) + [0] * len("hi<response>") + [0] + [1] * len("answer<submit>")
    assert histories[0].text == "t" + CALL + "hi<response>answer<submit>"


def test_the_end_token_ends_the_episode() -> None:
    for extra in ({}, {"eos_token_id": [EOS]}):
        env = environment(in_turn("I stop here"), generation_kwargs={"max_new_tokens": 60, **extra})
        *_, histories = env.run(["t"])
        assert histories[0].text == "tI stop here</s>"
        assert histories[0].completed


# --- bad input -----------------------------------------------------------------------------------------------------


def test_no_tasks() -> None:
    assert environment(in_turn("")).run([]) == ([], [], [], [], [])


def test_tasks_of_the_wrong_kind() -> None:
    with pytest.raises(TypeError, match="list of tasks"):
        environment(in_turn("")).run("one task")
    with pytest.raises(TypeError, match="task 1 is a int"):
        environment(in_turn("")).run(["a", 1])
    env = environment(in_turn(""))
    env.tokenizer = byte_tokenizer(bos=False)
    with pytest.raises(ValueError, match="task 1 has no tokens"):
        env.run(["a", ""])


def test_a_call_that_is_never_closed_ends_the_episode() -> None:
    *_, histories = environment(in_turn("<request><echo>hi")).run(["t"])
    assert histories[0].text == "t<request><echo>hi</s>"
    assert (histories[0].completed, histories[0].truncated) == (True, False)


def test_a_call_cut_off_by_the_token_limit_ends_the_episode() -> None:
    env = environment(in_turn(CALL), generation_kwargs={"max_new_tokens": 5})
    history = env.run(["t"])[4][0]
    assert history.text == "t<requ"
    assert (history.completed, history.truncated) == (True, False)


def test_nested_calls_get_a_reply_and_the_episode_goes_on() -> None:
    env = environment(in_turn("<request><echo>a<request><echo>b<call>", "fine<submit>"))
    *_, histories = env.run(["t"])
    assert "Unknown tool call: &lt;request><echo>a&lt;request><echo>b&lt;call><response>fine" in histories[0].text


def test_a_call_without_a_tool_gets_a_reply() -> None:
    *_, histories = environment(in_turn("<request>hi<call>", "<submit>")).run(["t"])
    assert "Unknown tool call: &lt;request>hi&lt;call><response>" in histories[0].text


def test_a_tool_that_raises_is_a_reply_and_the_others_go_on() -> None:
    def tool(query: str) -> str:
        if query == "b":
            raise ZeroDivisionError("by zero")
        return query

    env = environment(
        lambda text: "<submit>" if "<response>" in text else f"<request><tool>{text[-1]}<call>", tools={"tool": tool}
    )
    *_, histories = env.run(["a", "b", "c"])
    assert [history.text.split("<call>")[1] for history in histories] == [
        "a<response><submit>",
        "Tool error: by zero<response><submit>",
        "c<response><submit>",
    ]


def test_a_long_reply_is_shortened() -> None:
    env = environment(in_turn("<request><long>x<call>", "<submit>"), tools={"long": lambda _: "0123456789" * 9})
    env.max_tool_response = 20
    assert "<call>01234567890123456...<response>" in env.run(["t"])[4][0].text


def test_an_empty_reply() -> None:
    env = environment(in_turn("<request><none>x<call>", "<submit>"), tools={"none": lambda _: ""})
    assert env.run(["t"])[4][0].text == "t<request><none>x<call><response><submit>"


def test_an_empty_generation_stands_for_the_end_token() -> None:
    env = environment(in_turn(""))
    env._generate_batched = lambda queries: [query[:0] for query in queries]
    _, responses, masks, _, histories = env.run(["a", "b"])
    assert [row.tolist() for row in responses] == [[EOS], [EOS]]
    assert [row.tolist() for row in masks] == [[1], [1]]
    assert all(history.completed and not history.truncated for history in histories)


def test_a_generation_without_text_is_spelled_by_its_tokens() -> None:
    env = environment(in_turn("x"))
    plain = env.tokenizer.decode
    env.tokenizer.decode = lambda ids, **kwargs: "" if ids.tolist() == [EOS] else plain(ids, **kwargs)
    env._generate_batched = lambda queries: [torch.tensor([EOS])]
    assert env.run(["t"])[4][0].last_text_segment == "</s>"


@pytest.mark.parametrize("rewards", [[1.0], [1.0, 2.0, 3.0], 1.0, torch.tensor(1.0), None, {0: 1.0, 1: 2.0}])
def test_wrong_number_of_rewards(rewards) -> None:
    env = environment(in_turn("<submit>"), reward_fn=lambda texts: rewards)
    with pytest.raises(RewardError, match="reward_fn returned") as caught:
        env.run(["a", "b"])
    assert [history.text for history in caught.value.histories] == ["a<submit>", "b<submit>"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, torch.tensor(math.nan), "good", None, torch.zeros(0)])
def test_rewards_that_are_no_numbers(bad) -> None:
    env = environment(in_turn("<submit>"), reward_fn=lambda texts: [1.0, bad])
    with pytest.raises(RewardError, match="episode 1"):
        env.run(["a", "b"])


def test_importing_the_environment_does_not_import_the_trainer() -> None:
    """The floors of the house: nothing here reaches up."""
    import ast
    from pathlib import Path

    import trl_step.environment

    for path in Path(trl_step.environment.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ImportFrom) and "trainer" in (node.module or "")), path


def test_a_reply_that_no_tokenizer_takes() -> None:
    env = environment(
        lambda text: "<submit>" if "<response>" in text else "<request><half>x<call>",
        tools={"half": lambda text: "a\ud800b\udfff"},
    )
    *_, histories = env.run(["task", "task"])
    assert all("a\ufffdb\ufffd<response><submit>" in history.text for history in histories)
