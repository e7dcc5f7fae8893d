"""Environments of verifiers: one with their documented interface, and the real package if it is installed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from openai import AsyncOpenAI

from tests.sampling.endpoint.endpoint_tools import END, Scripted, endpoint
from trl_step.environment.adapters import VerifiersRunner
from trl_step.sampling import Endpoint

ROWS = [
    {"prompt": [{"role": "user", "content": "say one"}], "answer": "one"},
    {"prompt": [{"role": "user", "content": "say two"}], "answer": "two"},
]


class Policy(Scripted):
    """Says "one" to everything first, then "two"."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: f"{'two' if 'again' in prompt else 'one'}{END}")


@pytest.fixture
def policy() -> Policy:
    return Policy()


@pytest.fixture
def served(policy: Policy) -> Iterator[Endpoint]:
    with endpoint(policy) as open_endpoint:
        yield open_endpoint


class Environment:
    """`generate_sync` plays two turns with each input and gives 1 if the last answer is right; some inputs fail."""

    def __init__(self, scored: bool = True) -> None:
        self.scored = scored
        self.score_rollouts = True
        self.given: dict[str, Any] = {}

    def generate_sync(self, inputs: list[dict[str, Any]], client: Any, **given: Any) -> dict[str, Any]:
        self.given = given
        return {"outputs": asyncio.run(self.all(inputs, client, given))}

    async def all(self, inputs: list[dict[str, Any]], config: Any, given: dict[str, Any]) -> list[dict[str, Any]]:
        client = AsyncOpenAI(base_url=config.api_base_url, api_key=config.key, max_retries=0, timeout=30)
        return await asyncio.gather(*(self.one(i, row, client, config, given) for i, row in enumerate(inputs)))

    async def one(self, i: int, row: dict[str, Any], client: Any, config: Any, given: dict[str, Any]) -> dict[str, Any]:
        state = {"trajectory_id": f"rollout {i}"}
        headers = {name: state[key] for name, key in config.extra_headers_from_state.items()}
        messages = list(row["prompt"])
        for _ in range(0 if row.get("silent") else 2):
            answer = await client.chat.completions.create(
                model=given["model"], messages=messages, extra_headers=headers, **given["sampling_args"]
            )
            said = answer.choices[0].message.content
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "again"}]
            if row.get("fails"):
                return {**row, **state, "reward": 0.0, "error": {"error": "ToolError", "message": "no such tool"}}
        if row.get("silent"):
            return {**row, **state, "reward": 0.0, "error": None}
        reward = row.get("reward", float(said == row["answer"])) if self.scored else None
        metrics = {"length": 3.0, "right": reward}
        return {**row, **state, "reward": reward, "metrics": metrics, "error": None}


@pytest.fixture
def documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two names of verifiers that the runner takes."""

    def resolve_client(config: Any) -> Any:
        config.key = os.environ[config.api_key_var]
        return config

    monkeypatch.setitem(sys.modules, "verifiers", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "verifiers.clients", SimpleNamespace(resolve_client=resolve_client))
    monkeypatch.setitem(sys.modules, "verifiers.types", SimpleNamespace(ClientConfig=SimpleNamespace))


@pytest.mark.usefixtures("documented")
def test_rollouts_of_an_environment_with_the_documented_interface(policy: Policy, served: Endpoint) -> None:
    before = dict(os.environ)
    environment = Environment()
    runner = VerifiersRunner(environment, served, {"max_tokens": 8})
    assert os.environ == before, "the key is not left to the programs that an environment starts"
    played = runner.run(ROWS, n=2, max_concurrent=3)
    assert environment.given["max_concurrent"] == 3
    assert played.scores == [0.0, 0.0, 1.0, 1.0]
    assert played.group_ids == [0, 0, 1, 1]
    assert [output["answer"] for output in played.outputs] == ["one", "one", "two", "two"]
    for query, response, mask, row in zip(
        played.queries, played.responses, played.masks, [ROWS[0]] * 2 + [ROWS[1]] * 2, strict=True
    ):
        assert row["prompt"][0]["content"] in policy.tokenizer.decode(query)
        assert policy.tokenizer.decode(response[mask.bool()]) == f"one{END}two{END}"
        assert not mask.all(), "the user's turn is not the model's"
    assert played.sampling_logprobs is not None
    assert all(len(a) == len(b) for a, b in zip(played.sampling_logprobs, played.responses, strict=True))
    assert played.failed == []
    assert served.episodes().ids == [], "what was played is not given twice"


@pytest.mark.usefixtures("documented")
def test_equal_conversations_are_not_mixed_up(served: Endpoint) -> None:
    """All four conversations are the same, word for word."""
    played = VerifiersRunner(Environment(), served).run([ROWS[0]], n=4)
    assert [int(mask.sum()) for mask in played.masks] == [int(played.masks[0].sum())] * 4
    assert played.group_ids == [0] * 4


@pytest.mark.usefixtures("documented")
def test_failed_rollouts_are_named_and_left_out(served: Endpoint) -> None:
    rows = [ROWS[0], {**ROWS[1], "fails": True}]
    with pytest.warns(UserWarning, match=r"1 of 2 rollouts ended with an error.*no such tool"):
        played = VerifiersRunner(Environment(), served).run(rows)
    assert played.scores == [0.0]
    assert [output["answer"] for output in played.outputs] == ["one"]
    assert [output["answer"] for output in played.failed] == ["two"]


@pytest.mark.usefixtures("documented")
@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_rollouts_without_a_finite_reward_are_named_and_left_out(served: Endpoint, reward: float) -> None:
    rows = [ROWS[0], {**ROWS[1], "example_id": "the second", "reward": reward}]
    runner = VerifiersRunner(Environment(), served)
    told = rf"2 of 4 rollouts a reward that is not finite.*'the second', reward={reward}, from right={reward}$"
    with pytest.warns(UserWarning, match=told):
        played = runner.run(rows, n=2)
    assert played.scores == [0.0, 0.0]
    assert played.group_ids == [0, 0]
    assert len(played.queries) == len(played.responses) == len(played.masks) == len(played.outputs) == 2
    assert [output["answer"] for output in played.failed] == ["two", "two"]
    assert runner.run(ROWS).scores == [0.0, 1.0]


@pytest.mark.usefixtures("documented")
def test_rollouts_that_never_ask_the_model_are_said(served: Endpoint) -> None:
    rows = [ROWS[0], {**ROWS[1], "silent": True}]
    with pytest.warns(UserWarning, match=r"1 of 2 rollouts never call the model"):
        played = VerifiersRunner(Environment(), served).run(rows)
    assert played.scores == [0.0]
    assert played.failed == []


@pytest.mark.usefixtures("documented")
def test_groups_are_those_of_the_examples(served: Endpoint) -> None:
    rows = [{**ROWS[i % 2], "example_id": f"example {i % 2}"} for i in range(3)]
    assert VerifiersRunner(Environment(), served).run(rows).group_ids == [0, 1, 0]


@pytest.mark.usefixtures("documented")
def test_a_row_without_an_example_is_a_group_of_its_own(served: Endpoint) -> None:
    rows = [ROWS[0], {**ROWS[1], "example_id": 0}, ROWS[1], {**ROWS[0], "example_id": 2}]
    assert VerifiersRunner(Environment(), served).run(rows, n=2).group_ids == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.usefixtures("documented")
def test_an_environment_that_does_not_score_is_refused_before_it_plays(served: Endpoint) -> None:
    environment = Environment(scored=False)
    environment.score_rollouts = False
    with pytest.raises(ValueError, match=r"score_rollouts"):
        VerifiersRunner(environment, served).run(ROWS)
    assert environment.given == {}, "nothing was played"


@pytest.mark.usefixtures("documented")
def test_a_variable_of_the_user_stays(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_STEP_ENDPOINT_TOKEN", "mine")
    VerifiersRunner(Environment(), served).run(ROWS)
    assert os.environ["TRL_STEP_ENDPOINT_TOKEN"] == "mine"


@pytest.mark.usefixtures("documented")
def test_refused(served: Endpoint) -> None:
    with pytest.raises(TypeError, match=r"has no `generate_sync`: give an environment of verifiers"):
        VerifiersRunner(object(), served)
    runner = VerifiersRunner(Environment(scored=False), served)
    with pytest.raises(ValueError, match=r"n=0 must be at least 1"):
        runner.run(ROWS, n=0)
    with pytest.raises(ValueError, match=r"no row"):
        runner.run([])
    with pytest.raises(ValueError, match=r"score_rollouts"):
        runner.run(ROWS)


def test_without_the_package(served: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "verifiers.clients", None)
    with pytest.raises(ImportError, match=r"pip install .trl-step\[verifiers\]"):
        VerifiersRunner(Environment(), served)


# --- the real package --------------------------------------------------------------------------------------------


@pytest.fixture
def verifiers() -> Any:
    package = pytest.importorskip("verifiers")
    if not hasattr(package, "Rubric"):
        pytest.skip("verifiers 0.4 has other environments")
    return package


def right(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"] == answer)


def test_a_real_environment(verifiers: Any, policy: Policy, served: Endpoint) -> None:
    from datasets import Dataset

    class Twice(verifiers.MultiTurnEnv):
        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            return [{"role": "user", "content": "again"}]

    environment = Twice(dataset=Dataset.from_list(ROWS), rubric=verifiers.Rubric(funcs=[right]), max_turns=2)
    runner = VerifiersRunner(environment, served, {"max_tokens": 8, "temperature": 1.0})
    played = runner.run(environment.get_dataset(), n=2)
    assert played.failed == []
    assert sorted(played.group_ids) == [0, 0, 1, 1]
    for output, score, query, response, mask in zip(
        played.outputs, played.scores, played.queries, played.responses, played.masks, strict=True
    ):
        assert score == output["reward"] == float(output["answer"] == "two")
        assert f"say {output['answer']}" in policy.tokenizer.decode(query)
        assert policy.tokenizer.decode(response[mask.bool()]) == f"one{END}two{END}"


def test_a_real_rubric_that_compares_the_rollouts_of_an_example(verifiers: Any, served: Endpoint) -> None:
    from datasets import Dataset

    def place(completions: list[Any], **_: Any) -> list[float]:
        return [float(i) for i, _ in enumerate(completions)]

    environment = verifiers.SingleTurnEnv(
        dataset=Dataset.from_list(ROWS), rubric=verifiers.Rubric(funcs=[place], weights=[1.0])
    )
    played = VerifiersRunner(environment, served, {"max_tokens": 8}).run(environment.get_dataset(), n=3)
    assert sorted(zip(played.group_ids, played.scores, strict=True)) == [(g, s) for g in (0, 1) for s in (0, 1, 2)]


def test_a_real_rubric_that_gives_nan(verifiers: Any, served: Endpoint) -> None:
    from datasets import Dataset

    def odd(answer: str) -> float:
        return float("nan") if answer == "two" else 1.0

    environment = verifiers.SingleTurnEnv(dataset=Dataset.from_list(ROWS), rubric=verifiers.Rubric(funcs=[right, odd]))
    with pytest.warns(UserWarning, match=r"1 of 2 rollouts a reward.*example_id=1, reward=nan, from odd=nan$"):
        played = VerifiersRunner(environment, served, {"max_tokens": 8}).run(environment.get_dataset())
    assert played.scores == [2.0]
    assert [output["answer"] for output in played.failed] == ["two"]


def test_a_step_on_real_rollouts(verifiers: Any) -> None:
    """The policy itself answers, and is trained on what it said."""
    from datasets import Dataset

    from tests import tiny
    from trl_step.sampling import serve

    trainer = tiny.trainer(batch_size=4, mini_batch_size=2)
    trainer.tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    rows = [{"prompt": [{"role": "user", "content": f"w{5 + i} w7"}], "answer": "w9"} for i in range(2)]
    environment = verifiers.SingleTurnEnv(dataset=Dataset.from_list(rows), rubric=verifiers.Rubric(funcs=[right]))
    torch.manual_seed(0)
    with serve(trainer, max_new_tokens=6) as open_endpoint:
        played = VerifiersRunner(environment, open_endpoint).run(environment.get_dataset(), n=2)
    stats = trainer.step(
        played.queries, played.responses, played.scores, played.masks, sampling_logprobs=played.sampling_logprobs
    )
    assert abs(float(stats["objective/kl"])) < 1e-5
    assert stats["ppo/policy/ratio_error"] < 1e-4
