"""Each rule of the porting kit says the same twice: for the values of a call and for its source."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from accelerate import DataLoaderConfiguration
from transformers import BitsAndBytesConfig, GenerationConfig, TrainingArguments
from transformers.training_args import OptimizerNames

from trl_step.port.rules import CALLS, OPTIMIZERS, UNKNOWN, Quantization, Rule, Source, Values, Warmup

RULES = [pytest.param(rule, id=f"{kind}-{rule.old[0]}") for kind, rules in CALLS.items() for rule in rules]
NAMES = {"BitsAndBytesConfig": BitsAndBytesConfig, "DataLoaderConfiguration": DataLoaderConfiguration, "torch": torch}
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "top_k": (0.0, 50.0, 0, 40),
    "min_length": (-1, 0, 5),
    "device_map": ({"": 0}, {"": "cpu"}, "auto", "cuda", "cpu", 0, None),
    "warmup_ratio": (0.0, 0.1),
    "warmup_steps": (0, 5),
    "optim": ("adamw_hf", "adamw_apex_fused", "adamw_torch"),
}
TRUTH = (True, False)
RULES_OF_TRUTH_VALUES = [
    param for param in RULES if param.values[0].old[0] not in EXAMPLES and not isinstance(param.values[0], Quantization)
]


def evaluated(new: dict[str, str] | None) -> dict[str, Any] | None:
    return None if new is None else {name: as_dict(eval(source, NAMES)) for name, source in new.items()}


def as_dict(value: Any) -> Any:
    if isinstance(value, BitsAndBytesConfig):
        return value.to_dict()
    return vars(value) if isinstance(value, DataLoaderConfiguration) else value


@pytest.mark.parametrize("rule", RULES)
def test_source_means_the_values(rule: Rule) -> None:
    for count in range(1, len(rule.old) + 1):
        for names in itertools.combinations(rule.old, count):
            for values in itertools.product(*(EXAMPLES.get(name, TRUTH) for name in names)):
                given = dict(zip(names, values, strict=True))
                if isinstance(rule, Quantization) and len(given) == sum(given.values()) == 2:
                    continue  # refused by transformers
                wanted = rule.values(given)
                written = rule.sources({name: Source(repr(value), value) for name, value in given.items()})
                if wanted is None:
                    assert evaluated(written) in (None, given)
                else:
                    assert evaluated(written) == {name: as_dict(value) for name, value in wanted.items()}


@pytest.mark.parametrize("rule", RULES_OF_TRUTH_VALUES)
def test_source_of_what_is_known_at_run_time_only(rule: Rule) -> None:
    """An expression gives what its value would give; what a false one leaves out may be said as the default."""
    for values in itertools.product(TRUTH, repeat=len(rule.old)):
        given = dict(zip(rule.old, values, strict=True))
        written = rule.sources({name: Source(repr(value), UNKNOWN) for name, value in given.items()})
        wanted = {name: as_dict(value) for name, value in (rule.values(given) or {}).items()}
        got = evaluated(written) or {}
        assert {name: got[name] for name in wanted} == wanted or wanted == {}


def test_todays_training_arguments_take_every_new_name() -> None:
    known = set(TrainingArguments.__dataclass_fields__)
    for rule in CALLS["TrainingArguments"]:
        assert not known & set(rule.old) or isinstance(rule, (Values, Warmup)), f"{rule.old} is still taken"
        assert set(rule.values(dict.fromkeys(rule.old, True)) or {}) <= known


def test_todays_training_arguments_take_every_new_optimizer() -> None:
    names = {each.value for each in OptimizerNames}
    assert set(OPTIMIZERS.values()) <= names
    assert names.isdisjoint(OPTIMIZERS)


def test_whole_numbers_are_left_alone() -> None:
    top_k, min_length = CALLS["generate"]
    assert top_k.values({"top_k": 50}) is None
    assert top_k.values({"top_k": None}) is None
    assert top_k.values({"top_k": 0.0}) == {"top_k": 0}
    assert min_length.values({"min_length": -1}) == {"min_length": 0}
    assert type(GenerationConfig(**(top_k.values({"top_k": 0.0}) or {})).top_k) is int
