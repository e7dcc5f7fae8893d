"""The settings of transformers' `generate` in words that other engines share; what has no counterpart is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

TOP_K = 50
"""What transformers' `generate` takes if `top_k` is not set."""
WITHOUT_EFFECT = frozenset(
    {
        "batch_size",
        "bos_token_id",
        "cache_implementation",
        "decoder_start_token_id",
        "disable_compile",
        "pad_token_id",
        "synced_gpus",
        "token_budget",
        "tokenizer",
        "transformers_version",
        "use_cache",
    }
)
"""Settings that change nothing in the answers of another engine."""
NEUTRAL: dict[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "diversity_penalty": 0.0,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "is_assistant": False,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_logits": False,
    "output_scores": False,
    "remove_invalid_values": False,
    "remove_padding": True,
    "renormalize_logits": False,
    "return_dict_in_generate": False,
    "suppress_tokens": None,
    "token_healing": False,
    "typical_p": 1.0,
}
"""Settings without a counterpart, and the value at which they do nothing."""


class SamplingSettings(NamedTuple):
    """How answers are drawn."""

    temperature: float
    """0: the likeliest token each time"""
    top_p: float
    """1: off"""
    top_k: int
    """0: off"""
    min_p: float
    """0: off"""
    repetition_penalty: float
    """1: off"""
    min_new_tokens: int
    stop_strings: list[str]
    end_ids: list[int]
    """ids that end an answer, beside those that the engine knows"""
    engine_ends: bool
    """whether the end ids that the engine knows end an answer"""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether some tokens are made less likely, or impossible, before the temperature is applied."""
        return self.repetition_penalty != 1.0 or self.min_new_tokens > 0

    @property
    def truncated(self) -> bool:
        """Whether the less likely tokens are cut off after the temperature was applied."""
        return not self.greedy and (self.top_p < 1.0 or self.top_k > 0 or self.min_p > 0.0)


class Request(NamedTuple):
    """Answers to one query, of one limit."""

    query: list[int]
    limit: int
    """new tokens"""
    places: list[int]
    """where the answers stand among all"""


def settings_and_limits(
    queries: Sequence[torch.Tensor], n: int, settings: Mapping[str, Any]
) -> tuple[SamplingSettings, list[int]]:
    """`settings` of transformers' `generate` for `n` answers to each query, and the new tokens of each answer.

    Settings that are not given are transformers' defaults: greedy without `do_sample=True`, and then with `top_k=50`.
    A `generation_config` gives what the settings leave open.

    Raises:
        ValueError: a setting has no counterpart, or is not possible, or there is no length.
        TypeError: a setting is of the wrong type.
    """
    asked = _given(settings)
    limits = _limits(queries, n, asked)
    sampled = bool(asked.pop("do_sample", False))
    numbers = {
        name: _number(asked, name, default)
        for name, default in {
            "temperature": 1.0, "top_p": 1.0, "top_k": TOP_K, "min_p": 0.0, "repetition_penalty": 1.0,
            "min_new_tokens": 0, "min_length": 0,
        }.items()
    }  # fmt: skip
    if sampled and numbers["temperature"] <= 0:
        raise ValueError(f"temperature={numbers['temperature']:g} is not above 0; give do_sample=False instead")
    if numbers["min_length"] > 0:
        raise ValueError("min_length counts the prompt here and not there; give min_new_tokens")
    end_ids, engine_ends = _end_ids(asked.pop("eos_token_id", None))
    wanted = SamplingSettings(
        temperature=numbers["temperature"] if sampled else 0.0,
        top_p=numbers["top_p"] if sampled else 1.0,
        top_k=max(0, int(numbers["top_k"])) if sampled else 0,
        min_p=numbers["min_p"] if sampled else 0.0,
        repetition_penalty=numbers["repetition_penalty"],
        min_new_tokens=max(0, int(numbers["min_new_tokens"])),
        stop_strings=_stop_strings(asked.pop("stop_strings", None)),
        end_ids=end_ids,
        engine_ends=engine_ends,
    )
    for name, value in asked.items():
        if name not in NEUTRAL or value != NEUTRAL[name]:
            raise ValueError(
                f"{name}={_shown(value)} has no counterpart in this sampler; leave it out, or sample with the "
                "trainer's own model"
            )
    return wanted, limits


def requests_for(queries: Sequence[torch.Tensor], n: int, limits: Sequence[int]) -> list[Request]:
    """One order for each query, and for each limit if its answers have several."""
    found = []
    for i, query in enumerate(queries):
        places: dict[int, list[int]] = {}
        for place in range(i * n, (i + 1) * n):
            places.setdefault(limits[place], []).append(place)
        found += [Request(query.tolist(), limit, those) for limit, those in places.items()]
    return found


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that are set and have an effect, those of `generation_config` among them."""
    asked = dict(settings)
    config = asked.pop("generation_config", None)
    if config is not None:
        asked = {**config.to_dict(), **{name: value for name, value in asked.items() if value is not None}}
    return {
        name: value
        for name, value in asked.items()
        if value is not None and name not in WITHOUT_EFFECT and not name.startswith("_")
    }


def _limits(queries: Sequence[torch.Tensor], n: int, asked: dict[str, Any]) -> list[int]:
    given, length = asked.pop("max_new_tokens", None), asked.pop("max_length", None)
    if given is None and length is None:
        raise ValueError("max_new_tokens is missing; give the most tokens that an answer may have")
    if given is None:
        limits = [int(length) - len(query) for query in queries for _ in range(n)]
    elif isinstance(given, Iterable):
        limits = [int(limit) for limit in given]
    else:
        limits = [int(given)] * (len(queries) * n)
    if len(limits) != len(queries) * n:
        raise ValueError(f"max_new_tokens has {len(limits)} entries for {len(queries) * n} answers; give one for each")
    for place, limit in enumerate(limits):
        if limit < 1:
            raise ValueError(
                f"answer {place} may get {limit} new tokens; raise max_new_tokens or max_length, or shorten the query"
            )
    return limits


def _number(asked: dict[str, Any], name: str, default: float) -> float:
    value = asked.pop(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}={_shown(value)} is not a number")
    return value


def _stop_strings(value: Any) -> list[str]:
    strings = [] if value is None else [value] if isinstance(value, str) else list(value)
    if not all(isinstance(string, str) and string for string in strings):
        raise TypeError(f"stop_strings={_shown(value)} are not strings with a character or more")
    return strings


def _end_ids(value: Any) -> tuple[list[int], bool]:
    if value is None:
        return [], True
    values = value.tolist() if isinstance(value, torch.Tensor) else value
    ids = [int(one) for one in (values if isinstance(values, Iterable) else [values])]
    known = [one for one in ids if one >= 0]
    return known, bool(known)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
