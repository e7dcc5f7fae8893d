"""What is not possible is refused, with the field's name; what is harmless is taken."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.limits import HANG
from tests.sampling.endpoint.endpoint_tools import Scripted, ask, client, endpoint, until
from trl_step.sampling import Endpoint, ServeSettings, serve

TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def served() -> Iterator[Endpoint]:
    with endpoint(Scripted(), max_length=60, max_body=4000) as running:
        yield running


@cache
def connections() -> httpx.Client:
    return httpx.Client(timeout=30)


def post(served: Endpoint, path: str, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {served.token}"}
    return connections().post(served.url + path, headers=headers, **more)


CHAT: list[tuple[dict[str, Any], str]] = [
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"logit_bias": {"5": 1}}, "logit_bias"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_logprobs": 2, "logprobs": True}, "top_logprobs"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tool_choice": "required", "tools": [TOOL]}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"guided_json": {}}, "guided_json"),
    ({"best_of": 2}, "best_of"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": 1.5}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 1000}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
    ({"max_tokens": 50}, "max_completion_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", 1]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"logprobs": 1}, "logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"tools": [{"type": "custom"}]}, "tools[0]"),
    ({"tools": "add"}, "tools"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": [{"role": "user", "content": "x" * 61}]}, "messages"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ({"messages": [{"role": "user", "content": "x", "audio": {"id": 1}}]}, "messages[0].audio"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "messages[0].tool_calls[0]"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
        "messages[0].tool_calls[0].function.arguments",
    ),
]


@pytest.mark.parametrize(("more", "param"), CHAT, ids=[f"{param}-{i}" for i, (_, param) in enumerate(CHAT)])
def test_fields_of_a_chat(served: Endpoint, more: Any, param: str) -> None:
    body = json.dumps({**ask("Hi"), **more})
    answer = post(served, "/chat/completions", content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error"), error
    assert error["message"].startswith(param)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 5]}, "prompt[1]"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": "x" * 61}, "prompt"),
        ({"logprobs": 2}, "logprobs"),
        ({"echo": True}, "echo"),
        ({"suffix": "b"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"messages": []}, "messages"),
        ({"prompt": ["a"] * 257}, "prompt"),
    ],
)
def test_fields_of_a_completion(served: Endpoint, more: Any, param: str) -> None:
    answer = post(served, "/completions", json={"model": "policy", "prompt": "Hi", **more})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize(
    "more",
    [{"user": "me"}, {"metadata": {"a": 1}}, {"store": True}, {"n": None}, {"frequency_penalty": 0.0}, {"seed": None},
     {"response_format": {"type": "text"}}, {"tools": []}, {"parallel_tool_calls": True}, {"logit_bias": {}}],
)  # fmt: skip
def test_harmless_fields(served: Endpoint, more: Any) -> None:
    assert post(served, "/chat/completions", json=ask("Hi", **more)).status_code == 200


def test_another_model(served: Endpoint) -> None:
    with pytest.raises(openai.NotFoundError, match="the one that is served is 'policy'"):
        client(served).chat.completions.create(**{**ask("Hi"), "model": "gpt-4o"})


def test_the_room_that_is_left_is_the_limit() -> None:
    sampler = Scripted()
    with endpoint(sampler, max_length=60) as served:
        client(served).completions.create(model="policy", prompt="x" * 49)  # with the token in front of every text
        with pytest.raises(openai.BadRequestError, match="max_length=60") as caught:
            client(served).completions.create(model="policy", prompt="x" * 49, max_tokens=11)
    assert sampler.batches[0][2]["max_new_tokens"] == 10
    assert caught.value.code == "context_length_exceeded"


# --- the token -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {}", "{}", "Bearer {}x", "Bearer \xfc"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/nothing", "/episode/a/v1/completions"])
def test_without_the_token_nothing_is_answered(served: Endpoint, header: str | None, path: str) -> None:
    headers = {} if header is None else {"Authorization": header.format(served.token).encode("latin-1")}
    url = served.url.removesuffix("/v1") + path
    for answer in (connections().get(url, headers=headers), connections().post(url, headers=headers, json=ask("Hi"))):
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
        assert served.token not in answer.text


def test_the_openai_package_reports_a_wrong_token(served: Endpoint) -> None:
    with pytest.raises(openai.AuthenticationError):
        client(served, api_key="wrong").models.list()


def test_tokens_are_long_and_never_the_same(served: Endpoint) -> None:
    with endpoint(Scripted()) as other:
        assert other.token != served.token
        assert min(len(other.token), len(served.token)) >= 32


def test_a_fault_of_the_endpoint_is_told_in_the_same_form(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trl_step.sampling.endpoint.calls.read_turn", lambda *asked: 1 / 0)
    answer = post(served, "/chat/completions", json=ask("Hi"))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the endpoint failed: ZeroDivisionError: division by zero"
    until(lambda: "ZeroDivisionError" in caplog.text)


# --- bodies and routes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
def test_bodies_that_are_too_large(served: Endpoint, declared: bool) -> None:
    """A client that sends to the end first gets the answer all the same."""
    body = b'{"model": "policy", "prompt": "' + b"x" * 40_000_000
    pieces = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    address = urlsplit(served.url)
    connection = http.client.HTTPConnection(address.netloc, timeout=HANG)
    connection.request(
        "POST", f"{address.path}/completions", body if declared else pieces,
        {"Authorization": f"Bearer {served.token}"}, encode_chunked=not declared,
    )  # fmt: skip
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"5", b"\xff", b"[" * 3000])
def test_bodies_that_are_no_object(served: Endpoint, body: bytes) -> None:
    answer = post(served, "/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")


def test_routes_that_do_not_exist(served: Endpoint) -> None:
    answer = post(served, "/embeddings", json={})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "POST /v1/embeddings: Not Found")
    assert post(served, "/models").status_code == 405


def test_ids_of_episodes_have_a_length(served: Endpoint) -> None:
    with pytest.raises(openai.BadRequestError, match="1 to 128 characters, got 129"):
        client(served, "a" * 129).chat.completions.create(**ask("Hi"))


# --- what serve is given --------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not an address of this machine")
def test_it_listens_on_the_loopback_address_unless_asked(served: Endpoint) -> None:
    port = int(served.url.removesuffix("/v1").rpartition(":")[2])
    assert served.url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError):  # noqa: PT011  (of any kind: nothing listens there)
        socket.create_connection(("127.0.0.2", port), timeout=5)
    with endpoint(Scripted(), host="0.0.0.0") as open_one:
        port = int(open_one.url.removesuffix("/v1").rpartition(":")[2])
        socket.create_connection(("127.0.0.2", port), timeout=5).close()


@pytest.mark.parametrize(
    "settings",
    [{"max_new_tokens": 0}, {"max_length": 1}, {"top_p": 0}, {"temperature": -1}, {"batch_wait": -1}, {"max_body": 0},
     {"max_waiting": 0}, {"max_kept": -1}],
)  # fmt: skip
def test_settings_out_of_range(settings: Any) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ServeSettings(**settings)


def policy(**changes: Any) -> Any:
    """What has the attributes of a trainer."""
    attributes: dict[str, Any] = dict.fromkeys(("model_lock", "sampler", "sample", "tokenizer"))
    attributes |= {"is_encoder_decoder": False, "is_distributed": False, "config": SimpleNamespace(temperature=1.0)}
    return SimpleNamespace(**{**attributes, **changes})


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"color": "red"}, "color"),
        ({"is_encoder_decoder": True}, {}, "decoder-only model"),
        ({"is_distributed": True}, {}, "a run of one process"),
    ],
)
def test_what_cannot_be_served(changes: Any, settings: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        serve(policy(**changes), **settings)


def test_a_seed_that_the_sampler_does_not_take() -> None:
    with endpoint(Scripted(), takes_seeds=False) as served, pytest.raises(openai.BadRequestError) as caught:
        client(served).chat.completions.create(**ask("Hi", seed=1))
    assert caught.value.param == "seed"


def test_without_the_packages_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "trl_step.sampling.endpoint.http_server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"pip install \"trl-step\[serve\]\""):
        endpoint(Scripted())


def test_without_a_chat_template_completions_are_possible() -> None:
    sampler = Scripted()
    sampler.tokenizer.chat_template = None
    with endpoint(sampler) as served:
        assert client(served).completions.create(model="policy", prompt="Hi").choices[0].text == "yes"
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            client(served).chat.completions.create(**ask("Hi"))
