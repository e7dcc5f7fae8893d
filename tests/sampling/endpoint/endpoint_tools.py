"""Samplers that need no model, and clients of an endpoint over them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from openai import AsyncOpenAI, OpenAI

from tests.environment.chat_tools import FORMATS, chat_tokenizer
from tests.limits import HANG
from trl_step.sampling import Endpoint, ServeSettings
from trl_step.sampling.sampler import Sampler, Samples, repeated

KIND = "hermes"
END = FORMATS[KIND].end
CALL = FORMATS[KIND].call


class Scripted(Sampler):
    """Says what `script` makes of a prompt's text, with the log-prob -i / 8 for the i-th token.

    Args:
        script: what is said, without an end token if it is to be cut at the limit
        kind: of the chat template

    Attributes:
        batches: number of queries, and settings, of each call
        prompts: the texts of all queries
        begun: number of calls, those that wait included
        may_go_on: calls wait while it is not set
    """

    def __init__(self, script: Callable[[str], str] = lambda text: f"yes{END}", kind: str = KIND) -> None:
        super().__init__()
        self.tokenizer = chat_tokenizer(kind)
        self.script = script
        self.batches: list[tuple[int, int, dict[str, Any]]] = []
        self.prompts: list[str] = []
        self.begun = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def draw(self, queries: Sequence[torch.Tensor], n: int, settings: dict[str, Any]) -> Samples:
        self.begun += 1
        assert self.may_go_on.wait(30)
        self.batches.append((len(queries), n, settings))
        texts = [self.tokenizer.decode(query.tolist(), clean_up_tokenization_spaces=False) for query in queries]
        self.prompts += texts
        each, groups = repeated(queries, n)
        answers = [torch.tensor(self.ids(self.script(texts[group]))) for group in groups]
        limits = settings["max_new_tokens"]
        limits = limits if isinstance(limits, list) else [limits] * len(answers)
        cut = [answer[:limit] for answer, limit in zip(answers, limits, strict=True)]
        stops = settings.get("stop_strings", [])
        ended = [
            len(new) == len(answer) and (answer[-1] == self.tokenizer.eos_token_id or self._stopped(answer, stops))
            for new, answer in zip(cut, answers, strict=True)
        ]
        logprobs = [-torch.arange(len(answer)) / 8 for answer in cut]
        return Samples(each, cut, logprobs, [bool(end) for end in ended], 0, groups)

    def update(self, weights: Any, version: int) -> None:
        raise AssertionError("there are no weights")

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _stopped(self, answer: torch.Tensor, stops: Sequence[str]) -> bool:
        text = self.tokenizer.decode(answer.tolist(), clean_up_tokenization_spaces=False)
        return any(text.endswith(stop) for stop in stops)


def endpoint(sampler: Scripted, lock: Any = None, takes_seeds: bool = True, **settings: Any) -> Endpoint:
    """An endpoint over a scripted sampler; close it."""
    return Endpoint(sampler.sample, sampler.tokenizer, ServeSettings(**settings), lock, takes_seeds)


@cache
def first_client() -> OpenAI:
    """It takes a while to make, and is therefore shared."""
    return OpenAI(base_url="http://127.0.0.1", api_key="none", max_retries=0, timeout=30)


def client(of: Endpoint, episode: str | None = None, **options: Any) -> OpenAI:
    """A client that tries once."""
    url = of.url if episode is None else of.episode_url(episode)
    return first_client().with_options(base_url=url, **{"api_key": of.token, **options})


def async_client(of: Endpoint, episode: str | None = None) -> AsyncOpenAI:
    url = of.url if episode is None else of.episode_url(episode)
    return AsyncOpenAI(base_url=url, api_key=of.token, max_retries=0, timeout=30)


def ask(text: str = "Hello", **more: Any) -> dict[str, Any]:
    """A request for a chat."""
    return {"model": "policy", "messages": [{"role": "user", "content": text}], **more}


def until(true: Callable[[], Any], seconds: float = HANG) -> None:
    """Wait until something is true."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, "it did not come true"
        time.sleep(0.005)
