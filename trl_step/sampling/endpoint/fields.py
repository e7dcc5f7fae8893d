"""Reads the fields of a request. What cannot be honoured is refused, never ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

from trl_step.sampling.endpoint.errors import refused
from trl_step.sampling.endpoint.settings import ServeSettings

HARMLESS = frozenset(("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                      "prompt_cache_retention", "prompt_cache_options", "prediction"))  # fmt: skip
"""Fields that change nothing about an answer: they are taken, and nothing is done with them."""
NEUTRAL: Mapping[str, Any] = {
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "logit_bias": {},
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "parallel_tool_calls": True,
    "top_logprobs": 0,
}
"""Fields that can only be given with the value that changes nothing."""
MOST_ANSWERS = 128
MOST_STOPS = 16


class Sampling(NamedTuple):
    """How a prompt is sampled; prompts that are equal in all but `max_new_tokens` may share a batch."""

    max_new_tokens: Optional[int]
    """None: the client gave none"""
    temperature: float
    """0: greedy"""
    top_p: float
    top_k: int
    """0: all tokens"""
    n: int
    stop: tuple[str, ...]
    seed: Optional[int]


class Asked(NamedTuple):
    """What both kinds of requests have."""

    sampling: Sampling
    logprobs: bool
    stream: bool
    include_usage: bool


class Fields:
    """The body of a request, whose fields are read one by one; null is as good as absent.

    Raises:
        ApiError: 400 with the name of the field; so do all methods.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in body.items() if value is not None and name not in HARMLESS}

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is."""
        return self._left.pop(name, default)

    def number(self, name: str, least: float, most: float, whole: bool = False, default: Any = None) -> Any:
        """A number from `least` to `most`."""
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise refused(name, f"must be {'a whole number' if whole else 'a number'}, got {value!r:.80}")
        if not least <= value <= most:
            raise refused(name, f"must be from {least} to {most}, got {value!r:.80}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise refused(name, f"must be true or false, got {value!r:.80}")
        return value

    def strings(self, name: str, most: int) -> tuple[str, ...]:
        """A string, or a list of at most `most`; none of them empty."""
        value = self.take(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            raise refused(name, f"must be a text or a list of texts that are not empty, got {value!r:.80}")
        if len(value) > most:
            raise refused(name, f"has {len(value)} entries; at most {most} are possible")
        return tuple(value)

    def finish(self) -> None:
        """Refuse what nobody has read."""
        for name, value in self._left.items():
            if name not in NEUTRAL:
                raise refused(name, "is not known here, and may not be ignored; leave it out", "unknown_parameter")
            if value != NEUTRAL[name]:
                raise refused(
                    name, f"{value!r:.80} is not possible here; leave it out, or give {NEUTRAL[name]!r}",
                    "unsupported_parameter",
                )  # fmt: skip


def read_common(fields: Fields, settings: ServeSettings, limits: Sequence[str], logprobs: bool) -> Asked:
    """What both kinds of requests have.

    Args:
        limits: the names of `max_tokens`
        logprobs: already read, as the two kinds write it differently
    """
    given = [(name, fields.number(name, 1, 2**31 - 1, whole=True)) for name in limits]
    numbers = {number for _, number in given if number is not None}
    if len(numbers) > 1:
        raise refused(limits[0], f"differs from {limits[1]}; give one of them")
    sampling = Sampling(
        max_new_tokens=next(iter(numbers), None),
        temperature=float(fields.number("temperature", 0, 2, default=settings.temperature)),
        top_p=float(fields.number("top_p", 0, 1, default=settings.top_p)),
        top_k=fields.number("top_k", 0, 2**31 - 1, whole=True, default=0),
        n=fields.number("n", 1, MOST_ANSWERS, whole=True, default=1),
        stop=fields.strings("stop", MOST_STOPS),
        seed=fields.number("seed", -(2**63), 2**63 - 1, whole=True),
    )
    if sampling.top_p == 0:
        raise refused("top_p", "must be above 0; for the likeliest token give temperature 0")
    stream = fields.boolean("stream")
    return Asked(sampling, logprobs, stream, _include_usage(fields, stream))


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.take("stream_options")
    if options is None:
        return False
    if not stream or not isinstance(options, dict):
        raise refused("stream_options", "must be an object, and goes with stream: true alone")
    inner = Fields(options)
    include = inner.boolean("include_usage")
    if inner.boolean("include_obfuscation"):
        raise refused("stream_options.include_obfuscation", "is not possible here; leave it out")
    try:
        inner.finish()
    except Exception as error:
        raise refused("stream_options", str(error)) from error
    return include
