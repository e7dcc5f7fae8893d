"""Agents that talk to a trainer's policy, and the steps that follow."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests import tiny
from tests.environment.chat_tools import chat_tokenizer
from tests.limits import HANG
from tests.sampling.endpoint.endpoint_tools import KIND, client
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.sampling import Endpoint, ServedEpisodes, serve

TURNS = 3


@pytest.fixture
def trainer() -> PPOTrainer:
    tokenizer = chat_tokenizer(KIND)
    torch.manual_seed(0)
    plain = tiny.llama()
    plain.resize_token_embeddings(len(tokenizer))
    plain.config.max_position_embeddings = 512
    model = AutoModelForCausalLMWithValueHead.from_pretrained(plain)
    return PPOTrainer(tiny.config(temperature=0.7), model, None, tokenizer)


def converse(served: Endpoint, episode: str) -> None:
    """Three turns, each answered by the same words."""
    of, go_on = client(served, episode).chat.completions, {"role": "user", "content": "Go on"}
    messages = [{"role": "user", "content": f"Hello from {episode}"}]
    for _ in range(TURNS):
        said: Any = of.create(model="policy", messages=messages, max_tokens=6)
        messages += [{"role": "assistant", "content": said.choices[0].message.content}, go_on]


def play(served: Endpoint, names: list[str]) -> ServedEpisodes:
    with ThreadPoolExecutor(len(names)) as agents:
        list(agents.map(lambda name: converse(served, name), names))
    return served.episodes(names)


NAMES = [f"episode {i}" for i in range(8)]


@pytest.mark.filterwarnings("error")
def test_steps_from_what_agents_did(trainer: PPOTrainer) -> None:
    """The log-probs of the endpoint are those of the policy that `step` sees, after an update as before the first."""
    with serve(trainer) as served:
        for _ in range(2):
            episodes = play(served, NAMES)
            assert episodes.ids == NAMES, "every conversation is one sequence, whatever bytes the model wrote"
            assert episodes.sampling_logprobs is not None
            masks = episodes.response_masks
            assert all(int(mask.sum()) <= 6 * TURNS for mask in masks)
            assert sum(int(mask.sum()) for mask in masks) > 8 * TURNS
            inputs = trainer.prepare_model_inputs(episodes.queries, episodes.responses)
            with torch.no_grad():
                logprobs, _, _, counted = trainer.batched_forward_pass(
                    trainer.model, episodes.queries, episodes.responses, inputs, response_masks=masks
                )
            sampled = torch.cat([p[m.bool()] for p, m in zip(episodes.sampling_logprobs, masks, strict=True)])
            torch.testing.assert_close(logprobs[counted.bool()], sampled, atol=1e-4, rtol=0)
            before = tiny.weights(trainer.model)
            stats = trainer.step(
                episodes.queries,
                episodes.responses,
                [float(i) for i in range(8)],
                masks,
                sampling_logprobs=episodes.sampling_logprobs,
            )
            assert stats["ppo/sampling/kl"] == pytest.approx(0, abs=1e-4)
            after = tiny.weights(trainer.model)
            assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.filterwarnings("error")
class WatchedLock:
    """A lock that tells when a second thread asks for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._main = threading.get_ident()
        self.asked = threading.Event()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if threading.get_ident() != self._main:
            self.asked.set()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


def test_a_call_waits_for_the_step(trainer: PPOTrainer) -> None:
    """Nothing is sampled between the beginning of `step` and the end of its callbacks."""
    queries, responses, scores = tiny.batch()
    seen: list[str] = []
    lock = trainer.model_lock = WatchedLock()

    @trainer.on_step
    def ask(report: Any) -> None:
        agent.start()
        assert lock.asked.wait(HANG), "the endpoint samples without asking for the lock"
        agent.join(1.0)
        seen.append("end of step")

    with serve(trainer) as served:

        def one_call() -> None:
            client(served).completions.create(model="policy", prompt="Hi", max_tokens=2)
            seen.append("answer")

        agent = threading.Thread(target=one_call)
        trainer.step(queries, responses, scores)
        agent.join()
    assert seen == ["end of step", "answer"]


def test_a_seed_and_the_watch_over_settings(trainer: PPOTrainer) -> None:
    """The policy of this process takes seeds; settings that do not fit to the training are warned of as in `sample`."""
    with serve(trainer) as served:
        of = client(served).completions

        def text(seed: int, **more: Any) -> str:
            return of.create(model="policy", prompt="Hi", seed=seed, max_tokens=8, **more).choices[0].text

        assert text(1) == text(1) != text(2)
        with pytest.warns(UserWarning, match=r"sampled with top_p=0\.5"):
            text(1, top_p=0.5)
