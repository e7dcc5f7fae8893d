"""Layers that are thawed after the trainer was built, and that its optimizer holds, train as if they always had."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests import tiny
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer
from trl_step.trainer.processes.accelerate_state import make_accelerator
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.updates.on_device import OnDeviceUpdater
from trl_step.trainer.updates.updater import Updater

CASES: dict[str, dict[str, Any]] = {
    "clipped": {"max_grad_norm": 0.1},
    "accumulated": {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.1},
    "in parts": {"forward_tokens": 24, "max_grad_norm": 0.1},
    "skipped": {"mini_batch_size": 2, "gradient_accumulation_steps": 4, "ratio_threshold": 1.0, "kl_penalty": "abs"},
    "warming up": {"value_warmup_steps": 1},
}


class Line(torch.nn.Module):
    """3 a + 4 b, whose gradient has the norm 5."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.zeros(())) for _ in "ab")

    def forward(self) -> torch.Tensor:
        return 3 * self.a + 4 * self.b


@pytest.mark.parametrize("kind", [Updater, OnDeviceUpdater])
def test_the_norm_that_is_clipped(kind: type[Updater]) -> None:
    line, accelerator = Line(), make_accelerator([], {}, {"cpu": True})
    optimizer = accelerator.prepare(torch.optim.SGD(line.parameters(), lr=1.0, fused=True))
    updater = kind(Processes(accelerator), line, optimizer, [line.a], tiny.config(max_grad_norm=1.0))
    updater.add([line.a, line.b])
    updater.reset()
    one = torch.ones(1, 1)
    with updater.minibatch(1.0, last=True):
        updater.update(line(), {"policy/ratio": one}, one)
    assert [float(line.a), float(line.b)] == pytest.approx([-3 / 5, -4 / 5], rel=1e-5)


def thawing(kind: type[Updater], later: bool, **options: Any) -> tuple[PPOTrainer, torch.nn.Module]:
    """A trainer whose bottom layer is thawed before it is built, or `later`; both optimizers hold it then."""
    model = tiny.with_value_head("gpt2")
    layer = model.pretrained_model.transformer.h[0]
    layer.requires_grad_(not later)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.3, fused=True)
    ours = PPOTrainer(tiny.config(**options), model, None, tiny.tokenizer(), optimizer=optimizer)
    ours._updater = kind(ours._processes, ours.model, ours.optimizer, ours.model_params, ours.config)
    if later:
        layer.requires_grad_(True)
        ours.optimizer.add_param_group({"params": list(layer.parameters())})
    return ours, layer


@pytest.mark.parametrize("kind", [Updater, OnDeviceUpdater])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_a_trainer_that_always_had_them(case: str, kind: type[Updater]) -> None:
    moved, skipped = [], []
    for later in (False, True):
        ours, _ = thawing(kind, later, **CASES[case])
        before = tiny.weights(ours.model)
        np.random.seed(5)
        ours.step(*tiny.batch())
        skipped.append(ours._updater.skipped)
        moved.append({name: weight - before[name] for name, weight in tiny.weights(ours.model).items()})
    assert skipped[0] == skipped[1]
    assert (skipped[0] > 0) is (case == "skipped")
    for name, change in moved[0].items():
        torch.testing.assert_close(moved[1][name], change, msg=name)


def test_they_are_in_the_parameters_that_a_subclass_clips() -> None:
    ours, layer = thawing(Updater, later=True)
    count = len(ours.model_params)
    for _ in range(2):
        ours.step(*tiny.batch())
    assert len(ours.model_params) == count + 12
    assert {id(p) for p in layer.parameters()} <= {id(p) for p in ours.model_params}


def test_what_the_optimizer_does_not_hold_keeps_no_gradient() -> None:
    model = tiny.with_value_head("gpt2")
    layer = model.pretrained_model.transformer.h[0]
    layer.requires_grad_(False)
    ours = tiny.trainer(model)
    layer.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"give them to trainer\.optimizer\.add_param_group"):
        ours.step(*tiny.batch())
    assert [p for p in model.parameters() if p.grad is not None] == []


def test_what_is_frozen_later_stays_and_the_others_go_on() -> None:
    ours, layer = thawing(Updater, later=False, max_grad_norm=0.1)
    ours.step(*tiny.batch())
    layer.requires_grad_(False)
    norms: list[float] = []

    def watch(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat([grad.flatten() for grad in grads]).norm()))

    ours.optimizer.optimizer.register_step_pre_hook(watch)
    before, head = tiny.weights(layer), ours.model.v_head.summary.weight.detach().clone()
    ours.step(*tiny.batch(seed=2))
    assert all(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())
    assert not torch.equal(head, ours.model.v_head.summary.weight)
    assert norms == pytest.approx([0.1] * 8, rel=1e-4)


def test_another_adapter_that_the_optimizer_gets_is_clipped() -> None:
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
    inner = get_peft_model(tiny.gpt2(), lora)
    inner.add_adapter("other", lora)
    ours = tiny.trainer(AutoModelForCausalLMWithValueHead.from_pretrained(inner), max_grad_norm=0.01)
    inner.set_adapter("other")
    others = [p for name, p in inner.named_parameters() if ".other." in name]
    ours.optimizer.add_param_group({"params": others})
    norms: list[float] = []

    def watch(optimizer: Any, *_: Any) -> None:
        norms.append(float(torch.cat([p.grad.flatten() for p in (*others, *ours.model.v_head.parameters())]).norm()))

    ours.optimizer.optimizer.register_step_pre_hook(watch)
    ours.step(*tiny.batch())
    assert norms == pytest.approx([0.01] * 8, rel=1e-3)


def test_several_processes_refuse_them() -> None:
    ours, layer = thawing(Updater, later=True)
    ours._processes.count = 2
    before = tiny.weights(layer)
    with pytest.raises(ValueError, match=r"12 parameters of model, such as .*h\.0\..* exchange the gradients of what"):
        ours.step(*tiny.batch())
    assert all(torch.equal(before[name], parameter) for name, parameter in layer.named_parameters())


def test_the_base_model_of_an_adapter_is_the_reference_and_is_refused() -> None:
    inner = get_peft_model(tiny.gpt2(), LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True))
    ours = tiny.trainer(AutoModelForCausalLMWithValueHead.from_pretrained(inner))
    norm = inner.base_model.model.transformer.ln_f
    norm.requires_grad_(True)
    ours.optimizer.add_param_group({"params": list(norm.parameters())})
    with pytest.raises(ValueError, match=r"2 parameters of the base model, such as .*ln_f.* the reference too"):
        ours.step(*tiny.batch())
