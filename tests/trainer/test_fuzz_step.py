"""Bad input by the thousand: `step` either trains, or says which sample is wrong and leaves everything as it was.

Each kind of fault is made in each list by itself, and faults of any kind are made together.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from peft import LoraConfig

from tests.tiny import VOCABULARY, gpt2, trainer, with_value_head
from tests.trainer.runs.state_tools import changed, everything, random_streams

LISTS = ("queries", "responses", "scores", "response_masks", "old_logprobs", "ref_logprobs", "values",
         "sampling_logprobs")  # fmt: skip
FOR_ALGORITHMS = ("group_ids", "advantages", "baseline_scores")
NAMES_A_SAMPLE = re.compile(r"\[\d+\]|sample \d+")
NAMES_A_LIST = re.compile(rf"({'|'.join((*LISTS, *FOR_ALGORITHMS))}) must be a list")


def trainer_of(name: str) -> Any:
    options = {"ppo_epochs": 1, "mini_batch_size": 2, "whiten_rewards": name == "llama", "max_grad_norm": 1.0}
    if name == "lora":
        lora = LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)
        return trainer(with_value_head("gpt2", peft_config=lora), use_score_norm=True, **options)
    if name in FOR_ALGORITHMS:
        settings = {"group_ids": "grpo", "advantages": "grpo", "baseline_scores": "remax"}
        loss = {"kl_in": "loss", "kl_penalty": "k3", "entropy_coef": 0.01, "policy_loss": "gspo", "cliprange": 0.01}
        return trainer(gpt2(), advantage_estimator=settings[name], **loss, **options)
    return trainer(name, **options)


IDS = [-(2**62), -100, -1, 60, 99, 2**40]
"""outside of the vocabulary"""
NUMBERS = [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e39, 3e38, -3e38, 1e30, 1e18, 1e-45, -300.0]
DTYPES = [
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float32, torch.float64, torch.float16,
    torch.bfloat16, torch.complex64, torch.uint16,
]  # fmt: skip
LAYOUTS = ["dense", "meta", "sparse", "strided", "gradient"]
SHAPES: dict[str, Any] = {
    "row": lambda tensor: tensor[None],
    "column": lambda tensor: tensor[:, None],
    "number": lambda tensor: tensor.sum(),
}

numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(-3, 3, width=32), st.sampled_from(NUMBERS)
)
dtypes = st.sampled_from(DTYPES)
shapes = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors(draw: st.DrawFn, dtype: Any = None, layout: str | None = None) -> torch.Tensor:
    """Of any type, shape, layout and device, with numbers that may not be finite."""
    shape, dtype = draw(shapes), dtype or draw(dtypes)
    fill = draw(numbers)
    if not (dtype.is_floating_point or dtype.is_complex):
        fill = draw(st.sampled_from([0, 1, 2, 5, 59, 60, 100, 127]))
    elif abs(fill) > torch.finfo(torch.float16).max:
        fill = float("inf")
    tensor = torch.full(shape, fill, dtype=dtype)
    kind = layout or draw(st.sampled_from(["dense"] * 5 + LAYOUTS))
    if kind == "meta":
        return tensor.to("meta")
    if kind == "sparse" and dtype != torch.uint16:
        return tensor.to_sparse()
    if kind == "strided" and tensor.dim():
        return torch.cat((tensor, tensor))[::2]
    if kind == "gradient" and tensor.is_floating_point():
        return tensor.requires_grad_()
    return tensor


JUNK: dict[str, st.SearchStrategy[Any]] = {
    "tensor": tensors(),
    "number": numbers,
    "integer": st.integers(-(2**70), 2**70),
    "bool": st.booleans(),
    "none": st.none(),
    "text": st.text(max_size=3),
    "bytes": st.binary(max_size=3),
    "complex": st.complex_numbers(),
    "list": st.lists(st.integers(-1, 61), max_size=4),
    "tuple": st.tuples(),
    "dictionary": st.dictionaries(st.integers(0, 3), st.integers(), max_size=2),
    "object": st.builds(object),
    "array": st.builds(np.array, st.lists(st.integers(0, 59), max_size=3)),
    "float32": st.builds(np.float32, st.floats(-3, 3)),
}
junk = st.one_of(*JUNK.values())
TENSORS = {f"tensor {dtype}": tensors(dtype) for dtype in DTYPES} | {
    f"tensor {layout}": tensors(None, layout) for layout in LAYOUTS
}


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


DAMAGES = ["dtype", "empty", "long", "shape", "device", "layout", "shorter", "list"]


def damaged_tensor(draw: st.DrawFn, tensor: torch.Tensor, change: str | None = None, value: Any = None) -> Any:
    """One thing about a good tensor is wrong, or odd."""
    change = change or draw(st.sampled_from(["value"] * 6 + DAMAGES))
    if change == "value" and tensor.numel() and tensor.dtype in (torch.int64, torch.float32, torch.float64):
        if value is None:
            value = draw(numbers if tensor.is_floating_point() else st.sampled_from(IDS))
        changed_tensor = tensor.detach().double() if tensor.is_floating_point() else tensor.clone()
        changed_tensor.view(-1)[draw(st.integers(0, tensor.numel() - 1))] = value
        return changed_tensor.to(tensor.dtype)
    how: dict[str, Any] = {
        "dtype": lambda: tensor.abs().to(draw(dtypes)),
        "empty": lambda: tensor[:0],
        "long": lambda: tensor.repeat(70),
        "shape": lambda: SHAPES[draw(st.sampled_from(list(SHAPES)))](tensor),
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


def faults_of(name: str) -> dict[str, Any]:
    """Each kind of fault by its name: a function that gives the list's items with a fault at place `i`."""

    def entry(make: Any) -> Any:
        return lambda draw, items, i: [*items[:i], make(draw, items[i]), *items[i + 1 :]]

    def drawn(kind: st.SearchStrategy[Any]) -> Any:
        return entry(lambda draw, _: draw(kind))

    def changed_to(change: str, value: Any = None) -> Any:
        return entry(lambda draw, tensor: damaged_tensor(draw, tensor, change, value))

    values = IDS if name in ("queries", "responses") else NUMBERS
    return (
        {kind: drawn(strategy) for kind, strategy in (JUNK | TENSORS).items()}
        | {f"damage {change}": changed_to(change) for change in DAMAGES}
        | {f"dtype {dtype}": entry(lambda _, tensor, dtype=dtype: tensor.abs().to(dtype)) for dtype in DTYPES}
        | {f"shape {shape}": entry(lambda _, tensor, shape=shape: SHAPES[shape](tensor)) for shape in SHAPES}
        | {f"value {value}": changed_to("value", value) for value in values}
        | {
            "zero": entry(lambda _, tensor: torch.zeros_like(tensor)),
            "drop": lambda draw, items, i: items[:i] + items[i + 1 :],
            "double": lambda draw, items, i: items[: i + 1] + items[i:],
            "whole": lambda draw, items, i: draw(junk),
            "whole list": lambda draw, items, i: draw(st.lists(junk, max_size=4)),
        }
    )


@st.composite
def single_faults(draw: st.DrawFn, name: str) -> dict[str, dict[str, Any]]:
    """For each kind of fault the same good inputs with it in the list `name`, which holds tensors alone."""
    inputs = draw(valid_inputs())
    items = list(inputs.get(name, [torch.ones(len(response)) for response in inputs["responses"]]))
    if name == "scores":
        items = [score * torch.ones(len(r)) for score, r in zip(items, inputs["responses"], strict=True)]
    place = st.integers(0, len(items) - 1)
    return {kind: {**inputs, name: fault(draw, items, draw(place))} for kind, fault in faults_of(name).items()}


def refusal(ours: Any, inputs: dict[str, Any]) -> str | None:
    """What `step` says against the inputs, or None where it trained on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours.step(**inputs)
        except (ValueError, TypeError) as error:
            return str(error)
    return None


class Fuzz:
    """Runs bad inputs through a trainer, and counts how often they were refused, and how often trained on."""

    def __init__(self, ours: Any) -> None:
        self.ours, self.outcomes, self.state = ours, Counter[str](), everything(ours)

    def step(self, inputs: dict[str, Any]) -> None:
        before = self.state | random_streams()  # hypothesis sets the streams before every example
        message = refusal(self.ours, inputs)
        if message is None:
            self.outcomes["trained"] += 1
            assert all(bool(torch.isfinite(parameter).all()) for parameter in self.ours.model.parameters())
            assert np.isfinite(self.ours.kl_ctl.value)
            self.state = everything(self.ours)
        else:
            self.outcomes["refused"] += 1
            assert NAMES_A_SAMPLE.search(message) or NAMES_A_LIST.search(message), f"which sample? {message}"
            assert changed(before, everything(self.ours)) == [], message


FUZZ = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", LISTS)
def test_each_kind_of_fault_in_each_list(name: str) -> None:
    """Each three times, in different inputs."""
    fuzz, seen = Fuzz(trainer_of("gpt2")), Counter[str]()

    @settings(FUZZ, max_examples=3, phases=[Phase.generate])  # smaller inputs would tell no more: the kind is noted
    @given(single_faults(name))
    def run(faults: dict[str, dict[str, Any]]) -> None:
        for kind, inputs in faults.items():
            seen[kind] += 1
            note(kind)
            fuzz.step(inputs)

    run()
    assert seen == dict.fromkeys(faults_of(name), 3)
    assert fuzz.outcomes["refused"] >= 100
    assert fuzz.outcomes["trained"] >= 5, "nothing got through: the inputs are too bad to show anything"


@pytest.mark.parametrize("name", FOR_ALGORITHMS)
def test_each_kind_of_fault_in_what_is_given_for_an_algorithm(name: str) -> None:
    """As above; without values and through a loss that couples tokens."""
    fuzz, seen = Fuzz(trainer_of(name)), Counter[str]()

    @settings(FUZZ, max_examples=3, phases=[Phase.generate])
    @given(valid_inputs(), st.data())
    def run(inputs: dict[str, Any], data: st.DataObject) -> None:
        inputs.pop("values", None)
        count = len(inputs["queries"])
        if name != "baseline_scores":
            inputs["group_ids"] = list(range(count))
        items = [float(i) for i in range(count)] if name != "group_ids" else inputs["group_ids"]
        if name == "advantages":
            items = [score * torch.ones(len(r)) for score, r in zip(items, inputs["responses"], strict=True)]
        for kind in JUNK | TENSORS:
            seen[kind] += 1
            note(kind)
            i = data.draw(st.integers(0, count - 1))
            fuzz.step({**inputs, name: [*items[:i], data.draw((JUNK | TENSORS)[kind]), *items[i + 1 :]]})
        fuzz.step({**inputs, name: items[:-1]})
        fuzz.step({**inputs, name: items})
        fuzz.step({**inputs, name: data.draw(junk)})

    run()
    assert seen == dict.fromkeys(JUNK | TENSORS, 3)
    assert fuzz.outcomes["refused"] >= (15 if name == "group_ids" else 30)  # most things are hashable
    assert fuzz.outcomes["trained"] >= 5, "nothing got through: the inputs are too bad to show anything"


@pytest.mark.parametrize(
    ("name", "examples"), [("gpt2", 300), ("llama", 120), ("lora", 120), ("bart", 120), ("t5", 120)]
)
def test_faults_of_any_kind_together(name: str, examples: int) -> None:
    fuzz = Fuzz(trainer_of(name))
    settings(FUZZ, max_examples=examples)(given(bad_inputs())(fuzz.step))()
    assert fuzz.outcomes["refused"] >= examples // 2
    assert fuzz.outcomes["trained"] >= 1
