"""Many clients at once, clients that break off, a sampler that fails, and a step that runs in between."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import torch

from tests.sampling.endpoint.endpoint_tools import END, Scripted, ask, async_client, client, endpoint, until
from trl_step.sampling import Endpoint
from trl_step.sampling.endpoint import batching
from trl_step.sampling.endpoint.replies import Choice, Reply
from trl_step.sampling.endpoint.routes import _events
from trl_step.sampling.endpoint.turns import Turn


def waiting(of: Endpoint) -> int:
    return len(of._batches._waiting)


class Asking(threading.Thread):
    """A client in a thread; `error` is what it got in place of an answer."""

    def __init__(self, of: Endpoint, text: str = "Hi", **more: Any) -> None:
        super().__init__(daemon=True)
        self.of, self.body = of, ask(text, **more)
        self.answer: Any = None
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.answer = client(self.of).chat.completions.create(**self.body)
        except openai.OpenAIError as error:
            self.error = error


@pytest.fixture
def sampler() -> Scripted:
    return Scripted()


@pytest.fixture
def served(sampler: Scripted) -> Iterator[Endpoint]:
    with endpoint(sampler) as running:
        yield running
        sampler.may_go_on.set()


def test_32_clients_at_once(served: Endpoint, sampler: Scripted) -> None:
    """Each gets the answer to its own question, in far fewer batches; every conversation has its own sequence."""
    sampler.script = lambda text: text.rpartition("user\n")[2].partition("<")[0].upper() + END

    async def converse(of: openai.AsyncOpenAI, name: str) -> None:
        messages: list[Any] = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"{name}, turn {turn}"})
            answer = await of.chat.completions.create(model="policy", messages=messages)
            assert answer.choices[0].message.content == f"{name}, TURN {turn}".upper()
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})

    async def all_at_once() -> None:
        async with async_client(served) as of:
            names = [f"client {i}" for i in range(32)]
            await asyncio.gather(*(converse(of.with_options(base_url=served.episode_url(n)), n) for n in names))

    asyncio.run(all_at_once())
    assert sum(count for count, *_ in sampler.batches) == 96
    assert len(sampler.batches) <= 48
    episodes = served.episodes([f"client {i}" for i in range(32)])
    assert episodes.ids == [f"client {i}" for i in range(32)]
    for name, response, mask in zip(episodes.ids, episodes.responses, episodes.response_masks, strict=True):
        wrote = sampler.tokenizer.decode(response[mask.bool()].tolist())
        assert wrote == "".join(f"{name}, TURN {turn}{END}".upper().replace("IM_END", "im_end") for turn in range(3))


def test_what_waits_is_sampled_together(served: Endpoint, sampler: Scripted) -> None:
    sampler.may_go_on.clear()
    asking = [Asking(served)]
    until(lambda: sampler.begun)
    asking += [Asking(served, max_tokens=count) for count in (2, 3)] + [Asking(served, temperature=0.5)]
    asking += [Asking(served, n=2), Asking(served, stop=";")]
    until(lambda: waiting(served) == 5)
    sampler.may_go_on.set()
    for each in asking:
        each.join()
        assert each.answer is not None
    assert sorted((count, n) for count, n, _ in sampler.batches[1:]) == [(1, 1), (1, 1), (1, 2), (2, 1)]
    assert {tuple(settings["max_new_tokens"]) for count, _, settings in sampler.batches if count == 2} <= {
        (2, 3),
        (3, 2),
    }
    assert [each.answer.usage.completion_tokens for each in asking[1:3]] == [2, 3]


def test_the_first_of_a_batch_waits_for_others(sampler: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    with endpoint(sampler, batch_wait=1.5) as served:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            until(lambda: waiting(served) == 3)

        monkeypatch.setattr(batching, "time", SimpleNamespace(sleep=sleep))
        asking = [Asking(served) for _ in range(3)]
        for each in asking:
            each.join()
    assert waits == [1.5]
    assert [count for count, *_ in sampler.batches] == [3]


def test_a_client_that_breaks_off_frees_its_place(sampler: Scripted) -> None:
    """While it waits, and while its answer is sampled; nothing of it is recorded."""
    sampler.may_go_on.clear()
    with endpoint(sampler, max_waiting=2) as served:
        for _ in range(2):
            with pytest.raises(openai.APITimeoutError):
                client(served, timeout=0.3).chat.completions.create(**ask("gone"))
        until(lambda: sampler.begun == 1 and not waiting(served))  # the second waited
        asking = [Asking(served), Asking(served)]
        until(lambda: waiting(served) == 2)
        with pytest.raises(openai.RateLimitError, match="2 prompts wait, and at most 2 may"):
            client(served).chat.completions.create(**ask())
        sampler.may_go_on.set()
        for each in asking:
            each.join()
            assert each.answer is not None
        assert sum(count for count, *_ in sampler.batches) == 3
        assert len(served.episodes().ids) == 2


def test_clients_try_again_when_too_many_wait(sampler: Scripted) -> None:
    with endpoint(sampler, max_waiting=1, batch_wait=0.2) as served:

        async def all_at_once() -> None:
            async with async_client(served) as of:
                patient = of.with_options(max_retries=10)
                await asyncio.gather(*(patient.chat.completions.create(**ask()) for _ in range(3)))

        asyncio.run(all_at_once())
        assert len(served.episodes().ids) == 3


def test_a_stream_is_recorded_when_it_was_taken() -> None:
    """That is before the client hears of the end and asks again; and not if it breaks off."""
    turn = Turn("yes", [], "stop", True)
    reply = Reply("id", "policy", [Choice(turn, torch.tensor([5]), None)], 3, True, None)
    seen: list[str] = []

    async def take(most: int) -> list[str]:
        seen.clear()
        events = _events(reply, lambda: seen.append("recorded"), include_usage=False)
        async for event in events:
            seen.append("end" if '"stop"' in event else "done" if "DONE" in event else "part")
            if len(seen) == most:
                break
        await events.aclose()  # type: ignore[attr-defined]
        return seen

    assert asyncio.run(take(9)) == ["part", "part", "recorded", "end", "done"]
    assert asyncio.run(take(2)) == ["part", "part"]


def test_requests_wait_while_the_weights_change(sampler: Scripted) -> None:
    lock = threading.RLock()
    with endpoint(sampler, lock, batch_wait=0.1) as served:
        with lock:
            asking = Asking(served)
            until(lambda: waiting(served))
            until(lambda: not waiting(served))
            time.sleep(0.1)
            assert not sampler.begun
        asking.join()
        assert asking.answer.choices[0].message.content == "yes"


def test_a_step_is_not_kept_waiting_by_many_clients(sampler: Scripted) -> None:
    """It gets the lock between two batches, however many wait."""
    lock = threading.RLock()
    sampler.script = lambda text: time.sleep(0.02) or f"yes{END}"  # type: ignore[func-returns-value]
    stopped = threading.Event()
    with endpoint(sampler, lock) as served:

        def ask_for_ever() -> None:
            while not stopped.is_set():
                client(served).chat.completions.create(**ask())

        asking = [threading.Thread(target=ask_for_ever) for _ in range(4)]
        for thread in asking:
            thread.start()
        until(lambda: len(sampler.batches) > 3)
        for _ in range(5):
            before = len(sampler.batches)
            with lock:
                assert len(sampler.batches) <= before + 2
        stopped.set()
        for thread in asking:
            thread.join()


def test_a_prompt_that_is_wrong_does_not_spoil_the_batch(served: Endpoint, sampler: Scripted) -> None:
    def script(text: str) -> str:
        if "wrong" in text:
            raise ValueError("query 0: 99 tokens do not fit into 64 positions")
        return f"yes{END}"

    sampler.script = script
    sampler.may_go_on.clear()
    asking = [Asking(served, "first")]
    until(lambda: sampler.begun)
    asking += [Asking(served, text) for text in ("one", "wrong", "two")]
    until(lambda: waiting(served) == 3)
    sampler.may_go_on.set()
    for each in asking:
        each.join()
    assert [each.answer is not None for each in asking] == [True, True, False, True]
    assert isinstance(asking[2].error, openai.BadRequestError)
    assert "do not fit into 64 positions" in str(asking[2].error)
    assert len(served.episodes().ids) == 3


def test_a_sampler_that_fails(served: Endpoint, sampler: Scripted) -> None:
    """Clients are told, and may try again; the endpoint goes on."""
    failures = iter([RuntimeError("the server is away")])

    def script(text: str) -> str:
        for failure in failures:
            raise failure
        return f"yes{END}"

    sampler.script = script
    with pytest.raises(openai.InternalServerError, match="sampling failed: RuntimeError: the server is away"):
        client(served).chat.completions.create(**ask())
    assert client(served).chat.completions.create(**ask()).choices[0].message.content == "yes"


def test_without_log_probs_none_are_given_out(served: Endpoint, sampler: Scripted) -> None:
    draw = sampler.draw
    sampler.draw = lambda *asked: draw(*asked)._replace(logprobs=None)  # type: ignore[method-assign]
    with pytest.raises(openai.BadRequestError, match="logprobs: this sampler knows none"):
        client(served).chat.completions.create(**ask(logprobs=True))
    client(served).chat.completions.create(**ask())
    assert served.episodes().sampling_logprobs is None


def test_a_seed_gives_the_same_answer_beside_others(served: Endpoint, sampler: Scripted) -> None:
    """It is sampled alone, and leaves the process's random numbers as they were."""
    sampler.script = lambda text: f"{torch.randint(10**9, ()).item()}{END}"
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sampler.may_go_on.clear()
    first, *seeded = [Asking(served), *(Asking(served, seed=seed) for seed in (5, 5, 6))]
    until(lambda: sampler.begun)
    sampler.may_go_on.set()
    one, two, three = [(each.join(), each.answer.choices[0].message.content)[1] for each in seeded]
    assert one == two != three
    first.join()
    torch.set_rng_state(before)
    assert first.answer.choices[0].message.content == str(torch.randint(10**9, ()).item())


def test_close_ends_what_waits(sampler: Scripted) -> None:
    sampler.may_go_on.clear()
    served = endpoint(sampler)
    running = Asking(served)
    until(lambda: sampler.begun)
    asking = Asking(served)
    until(lambda: waiting(served) == 1)
    closing = threading.Thread(target=served.close)
    closing.start()
    asking.join()
    assert "the endpoint is closed" in str(asking.error)
    sampler.may_go_on.set()
    running.join()
    closing.join()
    assert running.answer.choices[0].message.content == "yes"
    with pytest.raises(httpx.ConnectError):
        httpx.get(served.url)
    assert len(served.episodes().ids) == 1, "what was recorded can still be taken"
    served.close()


def test_close_inside_of_a_step(sampler: Scripted) -> None:
    """Such as in a callback: the lock is held, and a prompt waits for it."""
    lock = threading.RLock()
    served = endpoint(sampler, lock, batch_wait=0.1)
    with lock:
        asking = Asking(served)
        until(lambda: waiting(served))
        until(lambda: not waiting(served))
        served.close()
    asking.join()
    assert "the endpoint is closed" in str(asking.error)
