"""Bad input by the thousand: `step` either trains, or says which sample is wrong and leaves everything as it was."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from tests.tiny import VOCABULARY, trainer, with_value_head
from tests.trainer.runs.state_tools import changed, everything

LISTS = ("queries", "responses", "scores", "response_masks", "old_logprobs", "ref_logprobs", "values")
NAMES_A_SAMPLE = re.compile(r"\[\d+\]|sample \d+")
NAMES_A_LIST = re.compile(rf"({'|'.join(LISTS)}) must be a list")


def trainer_of(name: str) -> Any:
    options = {"ppo_epochs": 1, "mini_batch_size": 2, "whiten_rewards": name == "llama", "max_grad_norm": 1.0}
    if name == "lora":
        lora = LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)
        return trainer(with_value_head("gpt2", peft_config=lora), use_score_norm=True, **options)
    return trainer(name, **options)


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.floats(-3, 3, width=32),
    st.sampled_from(
        [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e39, 3e38, -3e38, 1e30, 1e18, 1e-45, -300.0]
    ),
)
dtypes = st.sampled_from(
    [torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float32, torch.float64, torch.float16]
    + [torch.bfloat16, torch.complex64, torch.uint16]
)
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Of any type, shape, layout and device, with numbers that may not be finite."""
    shape, dtype = draw(shapes), draw(dtypes)
    fill = draw(numbers)
    if not (dtype.is_floating_point or dtype.is_complex):
        fill = draw(st.sampled_from([0, 1, 2, 5, 59, 60, 100, 127]))
    elif abs(fill) > torch.finfo(torch.float16).max:
        fill = float("inf")
    tensor = torch.full(shape, fill, dtype=dtype)
    kind = draw(st.sampled_from(["dense"] * 6 + ["meta", "sparse", "strided", "gradient"]))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse" and dtype != torch.uint16:
        return tensor.to_sparse()
    if kind == "strided" and tensor.dim():
        return torch.cat((tensor, tensor))[::2]
    if kind == "gradient" and tensor.is_floating_point():
        return tensor.requires_grad_()
    return tensor


junk = st.one_of(
    tensors(),
    numbers,
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.none(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.complex_numbers(),
    st.lists(st.integers(-1, 61), max_size=4),
    st.tuples(),
    st.dictionaries(st.integers(0, 3), st.integers(), max_size=2),
    st.builds(object),
    st.builds(np.array, st.lists(st.integers(0, 59), max_size=3)),
    st.builds(np.float32, st.floats(-3, 3)),
)


@st.composite
def valid_inputs(draw: st.DrawFn) -> dict[str, Any]:
    """Good inputs, some of them with the lists that are optional."""
    count = draw(st.integers(1, 4))

    def ids() -> torch.Tensor:
        return torch.tensor(draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6)))

    inputs: dict[str, Any] = {"queries": [ids() for _ in range(count)], "responses": [ids() for _ in range(count)]}
    inputs["scores"] = draw(st.lists(st.floats(-3, 3, width=32), min_size=count, max_size=count))
    for i in draw(st.sets(st.integers(0, count - 1))) if draw(st.booleans()) else ():
        inputs["scores"][i] = inputs["scores"][i] * torch.arange(len(inputs["responses"][i]))
    for name in draw(st.sets(st.sampled_from(LISTS[3:]), max_size=2)):
        inputs[name] = [
            torch.ones(len(r)) if name == "response_masks" else -torch.ones(len(r)) for r in inputs["responses"]
        ]
    return inputs


def damaged_tensor(draw: st.DrawFn, tensor: torch.Tensor) -> Any:
    """One thing about a good tensor is wrong, or odd."""
    changes = ["dtype", "empty", "long", "shape", "device", "layout", "shorter", "list"]
    change = draw(st.sampled_from(["value"] * 6 + changes))
    if change == "value" and tensor.numel() and tensor.dtype in (torch.int64, torch.float32, torch.float64):
        value = draw(numbers if tensor.is_floating_point() else st.sampled_from([-(2**62), -100, -1, 60, 99, 2**40]))
        changed_tensor = tensor.detach().double() if tensor.is_floating_point() else tensor.clone()
        changed_tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
        return changed_tensor.to(tensor.dtype)
    how: dict[str, Any] = {
        "dtype": lambda: tensor.abs().to(draw(dtypes)),
        "empty": lambda: tensor[:0],
        "long": lambda: tensor.repeat(70),
        "shape": lambda: draw(st.sampled_from([tensor[None], tensor[:, None], tensor.sum()])),
        "device": lambda: tensor.to("meta"),
        "layout": lambda: torch.ones(len(tensor), dtype=torch.int64).to_sparse(),
        "shorter": lambda: tensor[:-1],
        "list": lambda: tensor.tolist(),
    }
    return how[change]() if change in how else tensor


def is_plain(item: Any) -> bool:
    return isinstance(item, torch.Tensor) and (item.dim(), item.layout, item.device.type) == (1, torch.strided, "cpu")


@st.composite
def bad_inputs(draw: st.DrawFn) -> dict[str, Any]:
    """Good inputs, damaged in one to three places."""
    inputs = draw(valid_inputs())
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        name = draw(st.sampled_from(LISTS))
        items = inputs.get(name)
        how = draw(st.sampled_from(["entry"] * 4 + ["damage"] * 5 + ["drop", "double", "whole", "zero"]))
        if items is None:
            responses = inputs["responses"] if isinstance(inputs["responses"], list) else []
            items = [torch.ones(len(r)) for r in responses if isinstance(r, torch.Tensor) and r.dim()]
        if not isinstance(items, list) or not items or how == "whole":
            inputs[name] = draw(st.one_of(junk, st.lists(junk, max_size=4)))
            continue
        i = draw(st.integers(0, len(items) - 1))
        items = list(items)
        if how == "entry":
            items[i] = draw(junk)
        elif how == "drop":
            del items[i]
        elif how == "double":
            items.insert(i, items[i])
        elif how == "zero" and is_plain(items[i]):
            items[i] = torch.zeros_like(items[i])
        elif is_plain(items[i]):
            items[i] = damaged_tensor(draw, items[i])
        else:
            items[i] = draw(numbers)
        inputs[name] = items
    return inputs


def refusal(ours: Any, inputs: dict[str, Any]) -> str | None:
    """What `step` says against the inputs, or None where it trained on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours.step(**inputs)
        except (ValueError, TypeError) as error:
            return str(error)
    return None


def fuzz(name: str, examples: int) -> Counter[str]:
    """Run `examples` inputs through one trainer; how often they were refused, and how often trained on."""
    ours, outcomes = trainer_of(name), Counter[str]()

    @settings(FUZZ, max_examples=examples)
    @given(bad_inputs())
    def run(inputs: dict[str, Any]) -> None:
        before = everything(ours)
        message = refusal(ours, inputs)
        if message is None:
            outcomes["trained"] += 1
            assert all(bool(torch.isfinite(parameter).all()) for parameter in ours.model.parameters())
            assert np.isfinite(ours.kl_ctl.value)
        else:
            outcomes["refused"] += 1
            assert NAMES_A_SAMPLE.search(message) or NAMES_A_LIST.search(message), f"which sample? {message}"
            assert changed(before, everything(ours)) == [], message

    run()
    return outcomes


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.slow
def test_two_thousand_bad_inputs_to_a_decoder() -> None:
    """Takes more than ten seconds, as it is the count that was asked for."""
    outcomes = fuzz("gpt2", 2400)
    assert outcomes["refused"] >= 2000
    assert outcomes["trained"] >= 50, "nothing got through: the inputs are too bad to show anything"


@pytest.mark.parametrize("name", ["llama", "lora", "bart", "t5"])
def test_bad_inputs_to_other_models(name: str) -> None:
    outcomes = fuzz(name, 120)
    assert outcomes["refused"] >= 50
    assert outcomes["trained"] >= 1
