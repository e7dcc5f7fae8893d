"""Keeps what was asked and answered, token by token, as sequences that `step` can train on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch

from trl_step.models.notices import warn_user
from trl_step.sampling.endpoint.messages import Conversation, continues


class ServedEpisodes(NamedTuple):
    """What an endpoint has recorded, one entry per sequence; all tensors are on the CPU.

    An episode is one sequence if each of its prompts begins with everything before; otherwise several, one after the
    other. Train with

        scores = [rewards[episode] for episode in served.ids]
        trainer.step(served.queries, served.responses, scores, response_masks=served.response_masks,
                     sampling_logprobs=served.sampling_logprobs)
    """

    ids: list[str]
    """the episode of each sequence"""
    queries: list[torch.Tensor]
    """the first prompt, each [Q_i] int64"""
    responses: list[torch.Tensor]
    """everything after, each [R_i] int64"""
    response_masks: list[torch.Tensor]
    """each [R_i] int64, 1 on the tokens that the model wrote"""
    sampling_logprobs: Optional[list[torch.Tensor]]
    """each [R_i] float32, 0 where the mask is 0; None if the sampler knew none for some of the sequences"""


class Answer(NamedTuple):
    """What the model wrote to a prompt."""

    tokens: torch.Tensor
    """[R] int64"""
    logprobs: Optional[torch.Tensor]
    """[R] float32"""
    ended_by_token: bool
    """whether the last token is an end token, rather than the end of a stop string or of the room"""
    conversation: Optional[Conversation] = None
    """for a chat: with this answer as its last message"""


@dataclass
class Record:
    """A prompt and what followed; grows while prompts continue it."""

    episode: str
    named: bool
    """whether the client gave the episode its id"""
    query_length: int
    tokens: torch.Tensor
    """[Q + R] int64"""
    mask: torch.Tensor
    """[Q + R] int64, 1 on the tokens that the model wrote"""
    logprobs: Optional[torch.Tensor]
    """[Q + R] float32, 0 where the mask is 0"""
    last: Answer
    """at the end of `tokens`"""

    def begins(self, prompt: torch.Tensor) -> bool:
        """Whether `prompt` [P] is this sequence, or goes on after it."""
        length = len(self.tokens)
        return (
            len(prompt) >= length
            and bool(prompt[length - 1] == self.tokens[-1])  # decides nearly always
            and torch.equal(prompt[:length], self.tokens)
        )

    def append(self, prompt: torch.Tensor, answer: Answer) -> None:
        """Go on to the end of `prompt` [P], which the sequence begins, and with an `answer` to it."""
        given = prompt[len(self.tokens) :]
        self.tokens = torch.cat((self.tokens, given, answer.tokens))
        self.mask = torch.cat((self.mask, torch.zeros_like(given), torch.ones_like(answer.tokens)))
        if self.logprobs is None or answer.logprobs is None:
            self.logprobs = None
        else:
            self.logprobs = torch.cat((self.logprobs, torch.zeros(len(given)), answer.logprobs))
        self.last = answer


class Recorder:
    """All sequences that were not taken yet; its methods may be called from any thread.

    Args:
        most: sequences that are kept
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._records: list[Record] = []
        self._warned = False

    def continued(self, episode: Optional[str], chat: Conversation) -> Optional[tuple[torch.Tensor, Answer]]:
        """The tokens [T] so far, and the last turn, of the longest conversation that `chat` continues."""
        with self._lock:
            found: Optional[Record] = None
            for record in self._of(episode):
                known = record.last.conversation
                if (
                    known is not None
                    and known.tools == chat.tools
                    and continues(chat.messages, known.messages)
                    and (found is None or len(record.tokens) > len(found.tokens))
                ):
                    found = record
            return None if found is None else (found.tokens, found.last)

    def add(self, episode: Optional[str], call: str, prompt: torch.Tensor, answers: Sequence[Answer]) -> None:
        """Record the answers to a prompt [P].

        The first answer joins the longest sequence that the prompt continues; the others, and all of them if there is
        none, begin a sequence with the whole prompt as their query, so that no token of the model is trained twice.

        Args:
            episode: None: the one that the prompt continues, else a new one
            call: id of the call, which a new episode is named after
        """
        if self._most == 0:
            return
        with self._lock:
            joined = max(
                (record for record in self._of(episode) if record.begins(prompt)),
                key=lambda record: len(record.tokens),
                default=None,
            )
            name = episode or (call if joined is None else joined.episode)
            for answer in answers:
                if joined is None:
                    nothing = torch.zeros(0, dtype=torch.long)
                    start = Record(name, episode is not None, len(prompt), nothing, nothing, torch.zeros(0), answer)
                    start.append(prompt, answer)
                    self._records.append(start)
                else:
                    joined.append(prompt, answer)
                    joined = None
            self._make_room()

    def take(self, ids: Optional[Sequence[str]] = None) -> ServedEpisodes:
        """The sequences of the episodes `ids`, in their order; None: of all, in the order of their first calls.

        They are kept no more.
        """
        with self._lock:
            names = [record.episode for record in self._records] if ids is None else ids
            place = {name: i for i, name in enumerate(dict.fromkeys(names))}
            taken = [record for record in self._records if record.episode in place]
            self._records = [record for record in self._records if record.episode not in place]
        taken.sort(key=lambda record: place[record.episode])
        logprobs = [None if record.logprobs is None else record.logprobs[record.query_length :] for record in taken]
        return ServedEpisodes(
            [record.episode for record in taken],
            [record.tokens[: record.query_length] for record in taken],
            [record.tokens[record.query_length :] for record in taken],
            [record.mask[record.query_length :] for record in taken],
            None if any(known is None for known in logprobs) else logprobs,  # type: ignore[arg-type]
        )

    def _of(self, episode: Optional[str]) -> list[Record]:
        """The sequences that a call may continue."""
        return [record for record in self._records if (record.episode == episode if episode else not record.named)]

    def _make_room(self) -> None:
        while len(self._records) > self._most:
            oldest = self._records[0].episode
            self._records = [record for record in self._records if record.episode != oldest]
            if not self._warned:
                self._warned = True
                warn_user(
                    f"the endpoint keeps {self._most} sequences, and more were recorded: the oldest episodes are "
                    "dropped. Call episodes() more often, raise max_kept, or set max_kept=0 to record nothing"
                )
