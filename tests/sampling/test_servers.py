"""Samplers of servers against `FakeServer`: answers, weights, and whatever goes wrong."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import tiny
from tests.sampling.fake_servers import TOKEN, FakeServer, TinyWeights, connect_by_queue
from trl_step.sampling.http import ServerError
from trl_step.sampling.servers import ServerSampler
from trl_step.sampling.sglang import SGLangSampler
from trl_step.sampling.vllm import VLLMSampler

QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9]), torch.tensor([10, 11, 12, 13])]
WHOLE: dict[str, Any] = {"do_sample": True, "top_k": 0, "max_new_tokens": 6}
SAMPLERS = ("adapter", "broadcast", "sglang")


def model(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = tiny.llama()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer(model())
    yield fake
    fake.stop()


def sampler(kind: str, server: FakeServer, weights: Any, folder: Path, **options: Any) -> ServerSampler:
    options = {"vocabulary": tiny.VOCABULARY, "timeout": 60.0, **options}
    made: ServerSampler
    if kind == "sglang":
        made = SGLangSampler(server.url, weights, folder / "run", **options)
    elif kind == "adapter":
        made = VLLMSampler(server.url, weights, adapters=folder / "run", **options)
    else:
        made = VLLMSampler(server.url, weights, connect=connect_by_queue, **options)
    made.server.pause = 0.01
    return made


def logprobs_of(network: Any, query: torch.Tensor, response: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    with torch.no_grad():
        logits = network(torch.cat([query, response])[None]).logits[0, len(query) - 1 : -1].float()
    return (logits / temperature).log_softmax(-1).gather(1, response[:, None]).squeeze(1)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_each_answer_stands_with_its_query_and_its_logprobs(kind: str, server: FakeServer, tmp_path: Path) -> None:
    drawn = sampler(kind, server, None, tmp_path).sample(QUERIES, n=2, temperature=0.7, **WHOLE)
    assert drawn.group_ids == [0, 0, 1, 1, 2, 2]
    assert [query.tolist() for query in drawn.queries] == [QUERIES[i].tolist() for i in drawn.group_ids]
    assert drawn.logprobs is not None
    for query, response, logprobs, ended in zip(
        drawn.queries, drawn.responses, drawn.logprobs, drawn.ended, strict=True
    ):
        assert response.dtype == torch.int64
        assert logprobs.dtype == torch.float32
        torch.testing.assert_close(logprobs, logprobs_of(server.model, query, response, 0.7))
        assert ended == (response[-1] == tiny.EOS)
        assert ended or len(response) == 6


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_step_changes_what_the_server_samples(kind: str, server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model())
    remote = sampler(kind, server, weights, tmp_path)
    for version in range(3):
        drawn = remote.sample(QUERIES, n=2, **WHOLE)
        assert drawn.version == version
        assert drawn.logprobs is not None
        for query, response, logprobs in zip(drawn.queries, drawn.responses, drawn.logprobs, strict=True):
            torch.testing.assert_close(logprobs, logprobs_of(weights.model, query, response))
        sent = len(server.calls)
        remote.sample(QUERIES[:1], **WHOLE)
        assert not {"/update_weights", "/update_weights_from_disk", "/v1/load_lora_adapter"} & {
            *server.paths()[sent:]
        }, "weights that did not move are not sent again"
        weights.step(version)


def test_weights_are_sent_while_the_server_is_paused(server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model())
    sampler("broadcast", server, weights, tmp_path).sample(QUERIES[:1], **WHOLE)
    count = math.ceil(len(list(weights.tensors())) / 16)
    assert server.paths()[: 7 + count] == [
        "/get_world_size",
        "/init_weight_transfer_engine",
        "/pause?mode=wait",
        "/start_weight_update",
        *["/update_weights"] * count,
        "/finish_weight_update",
        "/reset_prefix_cache",
        "/resume",
    ]


def test_the_group_of_workers_is_joined_once(server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model())
    remote = sampler("broadcast", server, weights, tmp_path)
    for step in range(2):
        remote.sample(QUERIES[:1], **WHOLE)
        weights.step(step)
    assert server.paths().count("/init_weight_transfer_engine") == 1


@pytest.mark.parametrize("kind", ["adapter", "sglang"])
def test_one_folder_stays(kind: str, server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model())
    remote = sampler(kind, server, weights, tmp_path)
    for step in range(3):
        remote.sample(QUERIES[:1], **WHOLE)
        weights.step(step)
    assert [folder.name for folder in (tmp_path / "run").iterdir()] == ["run-2" if kind == "adapter" else "version-2"]
    assert kind == "sglang" or list(server.adapters) == ["run-2"]


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_server_that_started_anew_is_given_the_weights_again(kind: str, server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model(1))
    remote = sampler(kind, server, weights, tmp_path)
    remote.sample(QUERIES, **WHOLE)
    server.restart()
    drawn = remote.sample(QUERIES, **WHOLE)
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs[0], logprobs_of(weights.model, drawn.queries[0], drawn.responses[0]))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_nonsense_about_its_version_counts_as_another_one(kind: str, server: FakeServer, tmp_path: Path) -> None:
    remote = sampler(kind, server, TinyWeights(model(1)), tmp_path)
    remote.sample(QUERIES[:1], **WHOLE)
    sent = len(server.calls)
    server.mischief.append(lambda _: [1, 2])
    assert len(remote.sample(QUERIES[:1], **WHOLE).responses) == 1
    assert {"/update_weights", "/update_weights_from_disk", "/v1/load_lora_adapter"} & {*server.paths()[sent:]}


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_server_that_is_gone_raises_and_the_loop_goes_on(kind: str, server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model(1))
    remote = sampler(kind, server, weights, tmp_path)
    remote.sample(QUERIES, **WHOLE)
    server.stop()
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1.* was not reached"):
        remote.sample(QUERIES, **WHOLE)
    server._start(server.port)
    drawn = remote.sample(QUERIES, **WHOLE)
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs[0], logprobs_of(weights.model, drawn.queries[0], drawn.responses[0]))


@pytest.mark.parametrize(
    ("kind", "calls"), [("adapter", 1), ("sglang", 0), *(("broadcast", calls) for calls in (1, 2, 3, 4, 6))]
)
def test_weights_that_fail_half_way_are_sent_again(kind: str, calls: int, server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model(1))
    remote = sampler(kind, server, weights, tmp_path)
    server.mischief.extend([*[None] * calls, 500])
    with pytest.raises(RuntimeError, match=r"answered 500: .*out of luck"):
        remote.sample(QUERIES, **WHOLE)
    assert remote.version is None
    assert not server.paused
    drawn = remote.sample(QUERIES, **WHOLE)
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs[0], logprobs_of(weights.model, drawn.queries[0], drawn.responses[0]))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_server_that_fails_for_a_moment_is_asked_again(kind: str, server: FakeServer, tmp_path: Path) -> None:
    remote = sampler(kind, server, None, tmp_path)
    server.mischief.extend([500, 503])
    assert len(remote.sample(QUERIES[:1], **WHOLE).responses) == 1
    server.mischief.extend([500] * 4)
    with pytest.raises(ServerError, match="answered 500") as caught:
        remote.sample(QUERIES[:1], **WHOLE)
    assert caught.value.status == 500
    assert len(str(caught.value)) < 700
    assert len(remote.sample(QUERIES[:1], **WHOLE).responses) == 1


def test_a_refusal_is_final(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, None, tmp_path)
    server.mischief.append(400)
    with pytest.raises(ServerError, match="answered 400"):
        remote.sample(QUERIES[:1], **WHOLE)
    assert server.paths() == ["/generate"]


def test_a_connection_that_breaks_off_is_not_tried_again(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, None, tmp_path)
    server.mischief.append("drop")
    with pytest.raises(ServerError, match="the connection broke off") as caught:
        remote.sample(QUERIES[:1], **WHOLE)
    assert caught.value.status is None
    assert server.paths() == ["/generate"]


def test_a_slow_answer_is_given_up(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, None, tmp_path, timeout=0.5)
    server.mischief.append(3.0)
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"/generate did not answer within 0\.5 s"):
        remote.sample(QUERIES[:1], **WHOLE)
    assert time.monotonic() - started < 2.5
    assert len(remote.sample(QUERIES[:1], **WHOLE).responses) == 1


NONSENSE: dict[str, tuple[Any, str]] = {
    "no JSON": (lambda _: b"<html>hello", "did not answer in JSON: <html>hello"),
    "too long": (lambda _: b" " * 2**20, "answers with more than"),
    "a list": (lambda _: [1, 2], "an answer of another form"),
    "another form": (lambda _: {"error": "eh"}, "an answer of another form"),
    "fewer answers": (lambda a: {"choices": a["choices"][1:]}, "1 answers in place of 2"),
    "an id outside": (lambda a: changed(a, "token_ids", 99), "token id 99, outside the vocabulary"),
    "a negative id": (lambda a: changed(a, "token_ids", -1), "token id -1, outside"),
    "text as an id": (lambda a: changed(a, "token_ids", "w4"), "token ids that are no integers"),
    "too many tokens": (lambda a: changed(a, "token_ids", 5, 20), "an answer of 20 tokens, where 1 to 6"),
    "no tokens": (lambda a: changed(a, "token_ids", 5, 0), "an answer of 0 tokens"),
    "NaN": (lambda a: changed(a, "token_logprobs", float("nan")), "nan for the log-prob"),
    "impossible": (lambda a: changed(a, "token_logprobs", -9999.0), "-9999.0 for the log-prob"),
    "logits": (lambda a: changed(a, "token_logprobs", 3.5), "3.5 for the log-prob"),
    "no number": (lambda a: changed(a, "token_logprobs", None), "None for the log-prob"),
    "too few log-probs": (lambda a: changed(a, "token_logprobs", -1.0, 0), "0 log-probs for"),
    "aborted": (lambda a: changed(a, "finish_reason", "abort"), "ended for the reason 'abort'"),
}


def changed(answer: Any, name: str, value: Any, count: int | None = None) -> Any:
    choice = answer["choices"][0]
    if name == "finish_reason":
        choice[name] = value
        return answer
    holder = choice if name == "token_ids" else choice["logprobs"]
    holder[name] = [value] * (len(choice["token_ids"]) if count is None else count)
    return answer


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_and_the_loop_goes_on(name: str, server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("adapter", server, None, tmp_path)
    remote.sample(QUERIES[:1], n=2, **WHOLE)
    trick, message = NONSENSE[name]
    server.mischief.append(trick)
    with pytest.raises(RuntimeError, match=message) as caught:
        remote.sample(QUERIES[:1], n=2, **WHOLE)
    assert len(str(caught.value)) < 800
    assert len(remote.sample(QUERIES[:1], n=2, **WHOLE).responses) == 2


def test_an_update_that_is_not_taken_over_raises(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, TinyWeights(model()), tmp_path)
    server.mischief.append(lambda _: {"success": False, "message": "no such shape"})
    with pytest.raises(ServerError, match=r"that it did not take over .*no such shape"):
        remote.sample(QUERIES[:1], **WHOLE)


def test_old_weights_in_an_answer_are_seen(server: FakeServer, tmp_path: Path) -> None:
    weights = TinyWeights(model())
    remote = sampler("sglang", server, weights, tmp_path)
    remote.sample(QUERIES[:1], **WHOLE)

    def older(answer: Any) -> Any:
        answer["meta_info"]["weight_version"] = "default"
        return answer

    server.mischief.extend([None, older])
    with pytest.raises(ServerError, match="holds weights of version 'default', not 0"):
        remote.sample(QUERIES[:1], **WHOLE)


@pytest.mark.parametrize("kind", ["adapter", "sglang"])
def test_logprobs_that_ignore_the_temperature_are_refused(kind: str, server: FakeServer, tmp_path: Path) -> None:
    server.logprobs = "raw"
    remote = sampler(kind, server, None, tmp_path)
    mend = "SGLANG_RETURN_ORIGINAL_LOGPROB" if kind == "sglang" else "--logprobs-mode processed_logprobs"
    with pytest.raises(RuntimeError, match=f"ignore the temperature: .*{mend}"):
        remote.sample(QUERIES, temperature=0.7, **WHOLE)
    remote.sample(QUERIES, temperature=1.0, **WHOLE)


def test_a_server_is_asked_about_its_temperature_once(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, None, tmp_path)
    for _ in range(2):
        remote.sample(QUERIES, temperature=0.7, **WHOLE)
    assert len(server.calls) == 2 + 2 * len(QUERIES)


def test_cut_distributions_have_no_logprobs_of_vllm(server: FakeServer, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="there are no log-probs with top_k=5"):
        drawn = sampler("adapter", server, None, tmp_path).sample(QUERIES, **{**WHOLE, "top_k": 5})
    assert drawn.logprobs is None
    with pytest.raises(ValueError, match="there are no log-probs with top_k=5"):
        sampler("adapter", server, None, tmp_path).sample(QUERIES, **{**WHOLE, "top_k": 5}, return_logprobs=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = sampler("adapter", server, None, tmp_path).sample(QUERIES, max_new_tokens=3, return_logprobs=False)
    assert drawn.logprobs is None
    drawn = sampler("sglang", server, None, tmp_path).sample(QUERIES, **{**WHOLE, "top_k": 5})
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs[0], logprobs_of(server.model, QUERIES[0], drawn.responses[0]))


@pytest.mark.parametrize("kind", SAMPLERS)
def test_greedy_answers_are_drawn_once(kind: str, server: FakeServer, tmp_path: Path) -> None:
    drawn = sampler(kind, server, None, tmp_path).sample(QUERIES, n=3, max_new_tokens=5)
    assert [body for path, body in server.calls if path in ("/generate", "/v1/completions")].__len__() == 3
    for i, query in enumerate(QUERIES):
        sequence = server.model.generate(query[None], do_sample=False, max_new_tokens=5)[0, len(query) :]
        assert all(torch.equal(drawn.responses[3 * i + j], sequence) for j in range(3))


@pytest.mark.parametrize("kind", ["adapter", "sglang"])
def test_limits_stop_strings_and_end_ids_reach_the_server(kind: str, server: FakeServer, tmp_path: Path) -> None:
    remote = sampler(kind, server, None, tmp_path)
    limits = [1, 4, 2, 2, 3, 3]
    drawn = remote.sample(QUERIES, n=2, **{**WHOLE, "max_new_tokens": limits, "eos_token_id": -1})
    assert [len(response) for response in drawn.responses] == limits
    assert not any(drawn.ended)
    likeliest = [int(response[0]) for response in remote.sample(QUERIES, max_new_tokens=1).responses]
    ended = remote.sample(QUERIES[:1], max_new_tokens=4, eos_token_id=likeliest[0])
    assert ended.responses[0].tolist() == likeliest[:1]
    assert ended.ended == [True]
    ended = remote.sample(QUERIES[1:2], max_new_tokens=4, stop_strings=[f"w{likeliest[1]}"])
    assert ended.responses[0].tolist() == likeliest[1:2]
    assert ended.ended == [True]


def test_the_token_is_sent_and_never_shown(server: FakeServer, tmp_path: Path) -> None:
    remote = sampler("sglang", server, None, tmp_path, token=TOKEN)
    assert len(remote.sample(QUERIES[:1], **WHOLE).responses) == 1
    remote = sampler("sglang", server, None, tmp_path, token="wrong-token")
    with pytest.raises(ServerError, match=r"answered 401: .*not Bearer \*\*\*"):
        remote.sample(QUERIES[:1], **WHOLE)


def test_credentials_in_the_url_are_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="has credentials in it; give them as token") as caught:
        VLLMSampler("http://me:hidden@127.0.0.1:8000")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="is not the address of a server"):
        VLLMSampler("127.0.0.1:8000")


def test_many_queries_are_asked_at_a_time(server: FakeServer, tmp_path: Path) -> None:
    server.mischief.extend([0.4] * 8)
    started = time.monotonic()
    sampler("sglang", server, None, tmp_path, parallel=8).sample([QUERIES[0]] * 8, **WHOLE)
    assert time.monotonic() - started < 2.0


def test_without_a_gpu_all_weights_are_refused(server: FakeServer, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    remote = VLLMSampler(server.url, TinyWeights(model()), timeout=5.0)
    with pytest.raises(RuntimeError, match="over NCCL, from a GPU, and there is none here"):
        remote.sample(QUERIES[:1], **WHOLE)


class Elsewhere(TinyWeights):
    """As another process than the main one has them."""

    def on_main(self, send: Callable[[], None]) -> None:
        pass


@pytest.mark.parametrize("kind", SAMPLERS)
def test_only_the_main_process_sends(kind: str, server: FakeServer, tmp_path: Path) -> None:
    main, other = TinyWeights(model(1)), Elsewhere(model(1))
    sampler(kind, server, main, tmp_path).sample(QUERIES[:1], **WHOLE)
    sent = len(server.calls)
    drawn = sampler(kind, server, other, tmp_path).sample(QUERIES[1:], **WHOLE)
    assert {*server.paths()[sent:]} <= {"/generate", "/v1/completions", "/v1/models"}
    assert drawn.logprobs is not None
    torch.testing.assert_close(drawn.logprobs[0], logprobs_of(main.model, QUERIES[1], drawn.responses[0]))


def test_a_folder_is_needed_for_weights(server: FakeServer) -> None:
    with pytest.raises(ValueError, match=r"weights reach SGLang through a folder: give SGLangSampler\(folder"):
        SGLangSampler(server.url, TinyWeights(model())).sample(QUERIES, **WHOLE)
