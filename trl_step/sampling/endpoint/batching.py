"""Samples what waits: calls with equal settings in one batch, never while the weights change."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import torch

from trl_step.sampling.endpoint.errors import ApiError, refused
from trl_step.sampling.endpoint.fields import Sampling
from trl_step.sampling.sampler import Samples

logger = logging.getLogger(__name__)

Lock = Any
"""A lock of `threading`."""
Sample = Callable[..., Samples]
"""`sample` of a sampler or of a trainer."""


class Drawn(NamedTuple):
    """The answers to one prompt, `n` entries each."""

    responses: list[torch.Tensor]
    """each [R_i] int64, on the CPU"""
    logprobs: Optional[list[torch.Tensor]]
    """each [R_i] float32, on the CPU"""
    ended: list[bool]


class Job(NamedTuple):
    """A prompt [Q] that waits."""

    query: torch.Tensor
    sampling: Sampling
    answer: Future[Drawn]


class Batches:
    """A thread that samples.

    Args:
        sample: draws the answers
        tokenizer: used by this thread alone, for stop strings
        lock: held while answers are drawn
        wait: seconds that the first prompt of a batch waits for others
        most_waiting: prompts that may wait
    """

    def __init__(self, sample: Sample, tokenizer: Any, lock: Lock, wait: float, most_waiting: int) -> None:
        self._sample, self._tokenizer, self._lock = sample, tokenizer, lock
        self._wait, self._most = wait, most_waiting
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="trl_step endpoint: sampling", daemon=True)
        self._thread.start()

    def submit(self, queries: Sequence[torch.Tensor], sampling: Sampling) -> list[Future[Drawn]]:
        """Put prompts, each [Q_i], into the queue; a future that is cancelled gives its place back.

        Raises:
            ApiError: 429 if too many wait, 400 if so many never may, 503 after `close`.
        """
        jobs = [Job(query, sampling, Future()) for query in queries]
        with self._changed:
            if self._closed:
                raise _closing()
            if len(jobs) > self._most:
                raise refused("prompt", f"has {len(jobs)} entries; at most {self._most} may wait")
            if len(self._waiting) + len(jobs) > self._most:
                raise ApiError(
                    429, f"{len(self._waiting)} prompts wait, and at most {self._most} may; try again later", None,
                    "too_many_waiting",
                )  # fmt: skip
            self._waiting += jobs
            self._changed.notify_all()
        for job in jobs:
            job.answer.add_done_callback(lambda _, job=job: self._drop(job))  # type: ignore[misc]
        return [job.answer for job in jobs]

    def close(self) -> None:
        """Refuse what waits, and return after the batch that runs."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for job in waiting:
            _fail(job, _closing())
        self._thread.join()

    def _drop(self, job: Job) -> None:
        """Take a job out of the queue if it is still there."""
        with self._changed:
            self._waiting = [other for other in self._waiting if other is not job]

    # --- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
            time.sleep(self._wait)  # others come; and a step that waits for the lock gets it
            with self._changed:
                jobs, self._waiting = self._waiting, []
            groups: defaultdict[Sampling, list[Job]] = defaultdict(list)
            for job in jobs:
                groups[job.sampling._replace(max_new_tokens=None)].append(job)
            for sampling, group in groups.items():
                # what is drawn with a seed must not depend on who else asks
                for batch in [group] if sampling.seed is None else [[job] for job in group]:
                    self._answer([job for job in batch if job.answer.set_running_or_notify_cancel()])

    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        try:
            drawn = self._draw(jobs)
        except ApiError as error:
            for job in jobs:
                job.answer.set_exception(error)
        except (ValueError, TypeError) as error:
            if len(jobs) == 1:
                jobs[0].answer.set_exception(ApiError(400, str(error)))
            for job in jobs if len(jobs) > 1 else ():  # one is wrong: find it
                self._answer([job])
        except Exception as error:
            logger.exception("sampling failed")
            for job in jobs:
                job.answer.set_exception(ApiError(503, f"sampling failed: {type(error).__name__}: {error}"))
        else:
            for job, answer in zip(jobs, drawn, strict=True):
                job.answer.set_result(answer)

    def _draw(self, jobs: Sequence[Job]) -> list[Drawn]:
        sampling = jobs[0].sampling
        limits = [job.sampling.max_new_tokens for job in jobs for _ in range(sampling.n)]
        settings: dict[str, Any] = {"max_new_tokens": limits[0] if len(set(limits)) == 1 else limits}
        if sampling.temperature == 0:
            settings["do_sample"] = False
        else:
            settings |= {"do_sample": True, "temperature": sampling.temperature}
            settings |= {"top_p": sampling.top_p, "top_k": sampling.top_k}
        if sampling.stop:
            settings |= {"stop_strings": list(sampling.stop), "tokenizer": self._tokenizer}
        with self._held(), _seeded(sampling.seed):
            samples = self._sample([job.query for job in jobs], sampling.n, **settings)
        responses = [response.to("cpu", torch.long) for response in samples.responses]
        logprobs = None if samples.logprobs is None else [each.to("cpu", torch.float32) for each in samples.logprobs]
        places = [range(start, start + sampling.n) for start in range(0, len(limits), sampling.n)]
        return [
            Drawn(
                [responses[i] for i in place],
                None if logprobs is None else [logprobs[i] for i in place],
                [samples.ended[i] for i in place],
            )
            for place in places
        ]

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The lock; `close` ends the wait for it."""
        while not self._lock.acquire(timeout=0.1):
            if self._closed:
                raise _closing()
        try:
            yield
        finally:
            self._lock.release()


@contextmanager
def _seeded(seed: Optional[int]) -> Iterator[None]:
    """Random numbers from `seed`; afterwards the process's streams go on as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _closing() -> ApiError:
    return ApiError(503, "the endpoint is closed", None, "closed")


def _fail(job: Job, error: ApiError) -> None:
    if job.answer.set_running_or_notify_cancel():
        job.answer.set_exception(error)
