"""What the samplers of servers share: many queries at a time, and checks of every answer."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Optional

import torch

from trl_step.models.notices import warn_user
from trl_step.sampling.http import Server, ServerError, at_once, nonsense
from trl_step.sampling.local import several
from trl_step.sampling.options import check_arguments
from trl_step.sampling.sampler import Sampler, Samples, Weights, repeated
from trl_step.sampling.settings import TOP_K, Request, SamplingSettings, requests_for, settings_and_limits

BYTES_OF_A_TOKEN = 512
"""Of a server's answer, at most, for each token of prompt and answers."""
ROUNDING = 1e-3
"""Nats: so far above 0 may a log-prob be that a server computed in few bits."""
IMPOSSIBLE = -9000.0
"""Nats: servers write about -9999 for the log of 0, which no token that was drawn has."""
SHARP = 0.1
"""The temperature at which a server is asked whether its log-probs know of it."""
UNSURE = -0.05
"""Nats: a first token that is likelier than this is nearly as likely at every temperature, so it shows nothing."""
MOVE = 0.02
"""Nats by which the first token's log-prob rises at least, between temperatures 1 and `SHARP`."""
PROBES = 4
"""Queries that are asked until one shows something."""


class Answer(NamedTuple):
    """One answer as a server gave it, not yet looked at."""

    ids: Any
    logprobs: Any
    """None: it gave none, as nobody asked"""
    reason: Any
    """"stop" or "length" """


class ServerSampler(Sampler):
    """A sampler that asks a server over HTTP. Subclasses say how the server is asked and what it answers.

    In several processes each one asks for its own queries, and the main one sends the weights.

    Args:
        url: of the server
        weights: see `Sampler`
        token: for the header "Authorization"
        timeout: seconds for one answer, or for one call that moves weights
        parallel: queries that are asked at a time
        vocabulary: number of token ids; an answer with another id is refused
    """

    cut_logprobs = False
    """Whether the server's log-probs are those of the tokens that top_p, top_k and min_p leave over."""
    how_to_mend = ""
    """What to do about log-probs that ignore the temperature."""

    def __init__(
        self,
        url: str,
        weights: Optional[Weights] = None,
        *,
        token: Optional[str] = None,
        timeout: float = 600.0,
        parallel: int = 32,
        vocabulary: Optional[int] = None,
    ) -> None:
        super().__init__(weights)
        if parallel < 1:
            raise ValueError(f"parallel={parallel} queries at a time; give 1 or more")
        self.server = Server(url, token, timeout)
        self.parallel = parallel
        self.vocabulary = vocabulary
        self._knows_temperature = False
        self._warned = False

    def sample(self, queries: Sequence[torch.Tensor], n: int = 1, **settings: Any) -> Samples:
        """See `Sampler.sample`. A server that does not hold the last weights any more is given them again."""
        if self.weights is not None and self.version is not None:
            try:
                self.weights.on_main(partial(self.check_version, self.version))
            except Exception:  # whatever happened to the server, it is given the weights anew
                self.version = None
                self._knows_temperature = False
        return super().sample(queries, n, **settings)

    def draw(self, queries: Sequence[torch.Tensor], n: int, settings: dict[str, Any]) -> Samples:
        check_arguments(queries, 1, 1, {})
        n, asked_for_logprobs = several(n, settings), settings.pop("return_logprobs", None)
        wanted, limits = settings_and_limits(queries, n, settings)
        with_logprobs = asked_for_logprobs is not False and self._has_logprobs(wanted, asked_for_logprobs is True)
        if with_logprobs:
            self._check_temperature(queries, wanted)
        asked = requests_for(queries, n, limits)
        calls = [partial(self._answers, request, wanted, with_logprobs) for request in asked]
        try:
            drawn = at_once(calls, self.parallel)
        except ServerError as error:
            if error.status is None:
                self.lost()
            raise
        answers: dict[int, Answer] = {}
        for request, found in zip(asked, drawn, strict=True):
            answers.update(zip(request.places, found, strict=True))
        ordered = [answers[place] for place in range(len(queries) * n)]
        repeated_queries, group_ids = repeated(queries, n)
        return Samples(
            queries=repeated_queries,
            responses=[torch.tensor(answer.ids) for answer in ordered],
            logprobs=[torch.tensor(answer.logprobs, dtype=torch.float32) for answer in ordered]
            if with_logprobs
            else None,
            ended=[answer.reason == "stop" for answer in ordered],
            version=self.version or 0,
            group_ids=group_ids,
        )

    @abstractmethod
    def check_version(self, version: int) -> None:
        """Raise a `RuntimeError` if the server does not hold the weights of `version` any more; on the main process."""

    def lost(self) -> None:
        """A connection broke off, so the server may have started anew with its first weights."""

    @abstractmethod
    def post(self, request: Request, count: int, wanted: SamplingSettings) -> tuple[str, dict[str, Any]]:
        """Path and body that ask for `count` answers with log-probs of the tokens, and of each position's likeliest."""

    @abstractmethod
    def answers(self, content: Any) -> list[Answer]:
        """The answers in what the server sent. May raise anything that nonsense raises."""

    @abstractmethod
    def likeliest(self, content: Any) -> float:
        """Log-prob of the likeliest first token in what the server sent, nats. May raise as `answers` does."""

    def _answers(self, request: Request, wanted: SamplingSettings, with_logprobs: bool) -> list[Answer]:
        count = 1 if wanted.greedy else len(request.places)
        content = self._content(request, count, wanted)
        try:
            answers = self.answers(content)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._of_another_form(error, content) from None
        if len(answers) != count:
            raise nonsense(self.server.url, f"{len(answers)} answers in place of {count}", content)
        for answer in answers:
            problem = self._problem(answer, request.limit, with_logprobs)
            if problem is not None:
                raise nonsense(self.server.url, problem, content)
        return answers * len(request.places) if wanted.greedy else answers

    def _content(self, request: Request, count: int, wanted: SamplingSettings) -> Any:
        path, body = self.post(request, count, wanted)
        most_bytes = 2**16 + BYTES_OF_A_TOKEN * count * (request.limit + len(request.query))
        return self.server.ask(path, body, repeatable=True, most_bytes=most_bytes)

    def _problem(self, answer: Answer, limit: int, with_logprobs: bool) -> Optional[str]:
        """What is wrong with an answer, in words."""
        ids, logprobs = answer.ids, answer.logprobs
        if not isinstance(ids, list) or not all(type(one) is int for one in ids):
            return "token ids that are no integers"
        if not 1 <= len(ids) <= limit:
            return f"an answer of {len(ids)} tokens, where 1 to {limit} were asked for"
        least, most = min(ids), max(ids)
        if least < 0 or (self.vocabulary is not None and most >= self.vocabulary):
            return f"token id {least if least < 0 else most}, outside the vocabulary"
        if answer.reason not in ("stop", "length"):
            return f"an answer that ended for the reason {answer.reason!r}, and neither at its end nor at its limit"
        if not with_logprobs:
            return None
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            count = len(logprobs) if isinstance(logprobs, list) else "no"
            return f"{count} log-probs for {len(ids)} tokens"
        for one in logprobs:
            if type(one) not in (float, int) or not math.isfinite(one) or not IMPOSSIBLE < one <= ROUNDING:
                return f"{one!r} for the log-prob of a token that was drawn"
        return None

    def _of_another_form(self, error: Exception, content: Any) -> ServerError:
        return nonsense(self.server.url, f"an answer of another form ({type(error).__name__}: {error})", content)

    def _check_temperature(self, queries: Sequence[torch.Tensor], wanted: SamplingSettings) -> None:
        """Raise if the server's log-probs ignore the temperature; it is asked once, at the first one that matters."""
        if self._knows_temperature or wanted.temperature in (0.0, 1.0):
            return
        plain = SamplingSettings(1.0, 1.0, 0, 0.0, 1.0, 0, [], [], True)
        for query in queries[:PROBES]:
            request = Request(query.tolist(), 1, [0])
            at_one, sharp = (
                self._first(request, plain._replace(temperature=temperature)) for temperature in (1.0, SHARP)
            )
            if at_one > UNSURE:
                continue
            if sharp < at_one + MOVE:
                raise RuntimeError(
                    f"the log-probs of {self.server.url} ignore the temperature: that of a first token is {at_one:.3f} "
                    f"at temperature 1 and {sharp:.3f} at {SHARP:g}. {self.how_to_mend} Or sample at temperature=1"
                )
            self._knows_temperature = True
            return

    def _first(self, request: Request, wanted: SamplingSettings) -> float:
        content = self._content(request, 1, wanted)
        try:
            return float(self.likeliest(content))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise self._of_another_form(error, content) from None

    def _has_logprobs(self, wanted: SamplingSettings, needed: bool) -> bool:
        """Whether the server reports the policy's log-probs; if not, raise or warn."""
        if wanted.penalised:
            cause = f"repetition_penalty={wanted.repetition_penalty:g}, min_new_tokens={wanted.min_new_tokens}"
        elif wanted.truncated and self.cut_logprobs:
            cause = f"top_k={wanted.top_k} (transformers takes {TOP_K} if none is given), top_p={wanted.top_p:g}, "
            cause += f"min_p={wanted.min_p:g}"
        else:
            return True
        message = (
            f"there are no log-probs with {cause}, which change the distribution that {self.server.url} reports: "
            "sample with top_k=0, top_p=1.0 and nothing ruled out, or with return_logprobs=False"
        )
        if needed:
            raise ValueError(message)
        if not self._warned:
            self._warned = True
            warn_user(message)
        return False
