"""`Sampler`: what draws answers to queries, whatever it is: the model of this process, or a server.

A sampler that does not hold the trainer's own model is given `Weights`, and takes them over by itself before it samples
if they have changed since.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch


class Samples(NamedTuple):
    """Answers to queries, in the order of the queries; the answers to one query stand next to each other.

    `N` is the number of answers, `n` for each query.
    """

    queries: list[torch.Tensor]
    """the query of each answer, N tensors [Q_i] int64"""
    responses: list[torch.Tensor]
    """N tensors [R_i] int64 without the query; the end token is part of it"""
    logprobs: Optional[list[torch.Tensor]]
    """N tensors [R_i] float32: log-probs of the tokens at the sampling temperature, before any truncation; None if the
    sampler knows none. Of an encoder-decoder model [R_i - 1], as the start token is given"""
    ended: list[bool]
    """for each answer, whether it came to its end; False: it was cut at the length limit"""
    version: int
    """of the weights that drew the answers: the number of updates made before"""
    group_ids: list[int]
    """for each answer the number of its query, from 0"""

    def with_queries(self) -> list[torch.Tensor]:
        """Each answer after its query, N tensors [Q_i + R_i] int64."""
        pairs = zip(self.queries, self.responses, strict=True)
        return [torch.cat((query.to(answer), answer)) for query, answer in pairs]


class Weights(ABC):
    """The trainable policy, as a sampler elsewhere needs it. Every process calls each method."""

    @property
    @abstractmethod
    def version(self) -> int:
        """The number of updates made so far; the same on every process."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and value of each weight, one after the other, under the names that transformers saves.

        No value head; adapters are merged into what they change. On a process that is not the main one the values may
        be empty tensors.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model that `tensors` describes into `folder`, as safetensors with its configuration."""

    @abstractmethod
    def save_adapter(self, folder: Path) -> None:
        """Write the trained adapter into `folder`, as PEFT does.

        Raises:
            ValueError: the policy has no adapter.
        """

    @abstractmethod
    def on_main(self, send: Callable[[], None]) -> None:
        """Call `send` on the main process while the others wait; an error in it is raised on all of them."""


class Sampler(ABC):
    """Draws answers, and follows the weights of a trainer.

    Subclasses write `draw` and `update`.

    Args:
        weights: what to follow, `trainer.weights`; None: the sampler's weights never change.

    Attributes:
        version: that of the weights it samples with; None before the first `update`.
        is_encoder_decoder: answers are decoder tokens, with the start token in front.
        device: where answers are.
    """

    is_encoder_decoder = False
    device = torch.device("cpu")

    def __init__(self, weights: Optional[Weights] = None) -> None:
        self.weights = weights
        self.version: Optional[int] = None

    def sample(self, queries: Sequence[torch.Tensor], n: int = 1, **settings: Any) -> Samples:
        """Draw `n` answers to each query, with the trainer's latest weights.

        Args:
            queries: token ids, each [Q_i], any integer dtype, without padding
            n: answers per query
            settings: those of transformers' `generate`: `max_new_tokens` (one number, or one per answer),
                `temperature`, `top_p`, `top_k`, `do_sample`, `stop_strings`, ...; with `return_logprobs=False` the
                log-probs may be missing

        Raises:
            ValueError, TypeError: a query is empty or not a 1-d integer tensor, or a setting is not possible.
            RuntimeError: a server could not be reached, or answered nonsense. Nothing is lost: call again.
        """
        if n < 1:
            raise ValueError(f"n={n} answers per query; give 1 or more")
        if self.weights is not None and self.version != self.weights.version:
            version = self.weights.version
            self.update(self.weights, version)
            self.version = version
        return self.draw(queries, n, settings)

    @abstractmethod
    def draw(self, queries: Sequence[torch.Tensor], n: int, settings: dict[str, Any]) -> Samples:
        """What `sample` returns, with the weights as they are.

        Args:
            queries: token ids, each [Q_i]
            n: answers per query
            settings: as in `sample`; it may be changed
        """

    @abstractmethod
    def update(self, weights: Weights, version: int) -> None:
        """Take over `weights`. If this raises, `version` stays, and the next `sample` tries again."""


def repeated(queries: Sequence[torch.Tensor], n: int) -> tuple[list[torch.Tensor], list[int]]:
    """Each query `n` times, and for each the number of its query: `Samples.queries` and `Samples.group_ids`."""
    return [query for query in queries for _ in range(n)], [i for i in range(len(queries)) for _ in range(n)]
