"""Settings of transformers' `generate` for other engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from trl_step.sampling.settings import SamplingSettings, requests_for, settings_and_limits

QUERIES = [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]
PLAIN = SamplingSettings(1.0, 1.0, 0, 0.0, 1.0, 0, [], [], True)


def wanted(**settings: Any) -> SamplingSettings:
    return settings_and_limits(QUERIES, 1, {"max_new_tokens": 4, **settings})[0]


def test_defaults_are_those_of_transformers() -> None:
    assert wanted() == PLAIN._replace(temperature=0.0)
    assert wanted().greedy
    assert wanted(do_sample=True) == PLAIN._replace(top_k=50)
    assert GenerationConfig._get_default_generation_params()["top_k"] == 50


def test_the_settings_of_old_scripts_are_taken() -> None:
    old = {"min_length": -1, "top_k": 0.0, "top_p": 1.0, "do_sample": True, "pad_token_id": 0, "eos_token_id": -1}
    assert wanted(**old) == PLAIN._replace(engine_ends=False)


def test_each_setting_is_translated() -> None:
    found = wanted(
        do_sample=True, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repetition_penalty=1.2, min_new_tokens=2,
        stop_strings="w4", eos_token_id=torch.tensor([1, 9]), num_beams=1, use_cache=True, typical_p=None,
    )  # fmt: skip
    assert found == SamplingSettings(0.5, 0.9, 7, 0.1, 1.2, 2, ["w4"], [1, 9], True)
    assert found.truncated
    assert found.penalised
    assert not PLAIN.truncated
    assert not PLAIN.penalised


def test_a_generation_config_gives_what_is_left_open() -> None:
    config = GenerationConfig(do_sample=True, temperature=0.5, top_k=3, max_new_tokens=9)
    found, limits = settings_and_limits(QUERIES, 1, {"generation_config": config, "top_k": 0})
    assert found == PLAIN._replace(temperature=0.5)
    assert limits == [9, 9]


def test_limits_count_new_tokens() -> None:
    assert settings_and_limits(QUERIES, 2, {"max_length": 10})[1] == [7, 7, 8, 8]
    assert settings_and_limits(QUERIES, 2, {"max_new_tokens": range(1, 5)})[1] == [1, 2, 3, 4]


def test_answers_of_one_limit_are_one_order() -> None:
    found = requests_for(QUERIES, 3, [2, 4, 2, 5, 5, 5])
    assert [(request.query, request.limit, request.places) for request in found] == [
        ([5, 6, 7], 2, [0, 2]),
        ([5, 6, 7], 4, [1]),
        ([8, 9], 5, [3, 4, 5]),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 has no counterpart"),
        ({"bad_words_ids": [[3]]}, r"bad_words_ids=\[\[3\]\] has no counterpart"),
        ({"logits_processor": [None]}, "logits_processor="),
        ({"typo": 1}, "typo=1 has no counterpart"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"min_length": 5}, "give min_new_tokens"),
        ({"do_sample": True, "temperature": 0.0}, "give do_sample=False instead"),
        ({"max_new_tokens": None}, "max_new_tokens is missing"),
        ({"max_new_tokens": 0}, "answer 0 may get 0 new tokens"),
        ({"max_new_tokens": [3]}, "1 entries for 2 answers"),
        ({"max_new_tokens": None, "max_length": 2}, "answer 0 may get -1 new tokens"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wanted(**settings)


@pytest.mark.parametrize(
    "settings", [{"temperature": "hot", "do_sample": True}, {"stop_strings": [3]}, {"top_k": True}]
)
def test_other_types_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        wanted(**settings)
