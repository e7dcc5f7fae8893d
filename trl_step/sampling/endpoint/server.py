"""`Endpoint`: an OpenAI-compatible server in a thread of this process."""

from __future__ import annotations

import copy
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Any, Optional, Protocol
from urllib.parse import quote

import torch

from trl_step.sampling.endpoint.batching import Batches, Lock, Sample
from trl_step.sampling.endpoint.calls import Calls
from trl_step.sampling.endpoint.recording import Recorder, ServedEpisodes
from trl_step.sampling.endpoint.settings import ServeSettings
from trl_step.sampling.local import LocalSampler
from trl_step.sampling.sampler import Sampler, Samples


class Endpoint:
    """Answers the clients of OpenAI's API, and records what it answers; see `serve`.

    It runs until `close`, or the end of its `with` block.

    Args:
        sample: of a sampler or a trainer, draws the answers
        tokenizer: of the model; a copy is used
        settings: how the endpoint is reached, and what it allows
        lock: a lock of `threading` that is held while answers are drawn; None: one of its own
        takes_seeds: whether answers are drawn with torch's random numbers of this process; if not, a `seed` is refused

    Attributes:
        url: the base URL for clients
        token: what clients give as their API key

    Raises:
        ImportError: starlette or uvicorn is missing.
        OSError: the address cannot be listened on.
    """

    def __init__(
        self,
        sample: Sample,
        tokenizer: Any,
        settings: Optional[ServeSettings] = None,
        lock: Optional[Lock] = None,
        takes_seeds: bool = False,
    ) -> None:
        try:
            from trl_step.sampling.endpoint.http_server import HttpServer
            from trl_step.sampling.endpoint.routes import make_app
        except ImportError as error:
            raise ImportError('serving needs starlette and uvicorn: pip install "trl-step[serve]"') from error

        settings = settings or ServeSettings()
        self.token = secrets.token_urlsafe(32)
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._root = f"http://{host}:{listening.getsockname()[1]}"
        self.url = f"{self._root}/v1"

        self._recorder = Recorder(settings.max_kept)
        # a tokenizer may not be used by two threads at the same time
        for_sampling, for_calls = copy.deepcopy(tokenizer), copy.deepcopy(tokenizer)
        lock = lock or threading.RLock()
        self._batches = Batches(sample, for_sampling, lock, settings.batch_wait, settings.max_waiting)
        calls = Calls(settings, for_calls, self._recorder, takes_seeds)
        self._server = HttpServer(make_app(calls, self._batches, self.token), listening)

    def episode_url(self, episode: str) -> str:
        """The base URL for the clients of one episode, by an id of your choice of at most 128 characters."""
        return f"{self._root}/episode/{quote(episode, safe='')}/v1"

    def episodes(self, ids: Optional[Sequence[str]] = None) -> ServedEpisodes:
        """What was recorded since the last call, ready for `step`; it is kept no more.

        Args:
            ids: take these episodes alone, in this order; one without a recorded call has no sequence. None: all
        """
        return self._recorder.take(ids)

    def close(self) -> None:
        """End the server: waiting clients get an error, and the batch that is sampled is finished first."""
        self._batches.close()
        self._server.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Policy(Protocol):
    """What `serve` takes of a trainer."""

    config: Any
    """has the `temperature` that log-probs are trained at"""
    tokenizer: Any
    is_encoder_decoder: bool
    is_distributed: bool
    model_lock: Lock
    """held while the weights change"""

    @property
    def sampler(self) -> Sampler:
        """What `sample` draws with."""

    def sample(self, queries: Sequence[torch.Tensor], n: int = 1, **settings: Any) -> Samples:
        """Draws answers with the latest weights."""


def serve(policy: Policy, **settings: Any) -> Endpoint:
    """Serve a trainer's policy to agents, in the background, by OpenAI's API.

    ```python
    with serve(trainer) as endpoint:
        client = OpenAI(base_url=endpoint.episode_url("task 1"), api_key=endpoint.token)
        work(client)  # your agents, each with the URL of its episode
        served = endpoint.episodes()
        scores = [rewards[episode] for episode in served.ids]
        trainer.step(served.queries, served.responses, scores, served.response_masks)
    ```

    Calls that wait at the same time are sampled in one batch; while `step` runs, all wait.

    Args:
        policy: a `PPOTrainer`, or what has the same attributes
        settings: fields of `ServeSettings`; the temperature is by default that of the trainer's configuration

    Raises:
        ImportError: starlette or uvicorn is missing.
        OSError: the address cannot be listened on.
        TypeError, ValueError: a setting that does not exist, a number out of its range, a trainer on several processes
            or of an encoder-decoder model.
    """
    if policy.is_encoder_decoder:
        raise ValueError("serve needs a decoder-only model: a conversation is one sequence of tokens")
    if policy.is_distributed:
        raise ValueError(
            "serve works in a run of one process: on several, all have to sample together. Let each process call "
            "trainer.sample with queries of its own"
        )
    chosen = ServeSettings(**{"temperature": policy.config.temperature, **settings})
    takes_seeds = isinstance(policy.sampler, LocalSampler)
    return Endpoint(policy.sample, policy.tokenizer, chosen, policy.model_lock, takes_seeds)
