"""An optimizer, a scheduler or a reference that does not belong to the policy."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from tests.tiny import batch, config, tokenizer, trainer, weights, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead, PPOTrainer, create_reference_model


def build(model: Any, optimizer: Any, **more: Any) -> PPOTrainer:
    options = more.pop("options", {})
    return PPOTrainer(config(**options), model, more.pop("ref_model", None), tokenizer(), optimizer=optimizer, **more)


def trained(model: Any) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# --- the optimizer of another model ----------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["another model", "a copy of the model", "frozen parameters"])
def test_an_optimizer_that_would_train_nothing_is_refused(whose: str) -> None:
    model = with_value_head("gpt2")
    source = {"another model": with_value_head("gpt2"), "a copy of the model": copy.deepcopy(model)}.get(whose)
    if source is None:
        first = model.pretrained_model.transformer.wte.weight.requires_grad_(False)
        optimizer = torch.optim.Adam([first])
    else:
        optimizer = torch.optim.Adam(source.parameters())
    with pytest.raises(ValueError, match=r"optimizer.*none of the \d+ trainable parameters of model"):
        build(model, optimizer)


def test_an_optimizer_made_before_the_adapter_is_refused() -> None:
    from peft import LoraConfig

    from tests.tiny import gpt2

    base = gpt2()
    optimizer = torch.optim.Adam(base.parameters())
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        base, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True)
    )
    with pytest.raises(ValueError, match="none of the"):
        build(model, optimizer)


def test_a_missing_group_is_said_with_its_name() -> None:
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.pretrained_model.parameters(), lr=1e-3)
    with pytest.warns(UserWarning, match=r"not in the optimizer.*v_head\.summary\.weight"):
        build(model, optimizer)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_whole_optimizer_gives_no_warning(prepared: bool) -> None:
    model = with_value_head("gpt2")
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=1e-3)
    if prepared:
        optimizer = Accelerator(cpu=True).prepare(optimizer)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = build(model, optimizer)
        before = weights(model)
        ours.step(*batch())
    assert not [w for w in seen if "optimizer" in str(w.message)]
    assert not torch.equal(weights(model)["v_head.summary.weight"], before["v_head.summary.weight"])


def test_shared_layers_in_the_optimizer_are_no_fault() -> None:
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        build(model, optimizer, num_shared_layers=1)
    assert not [w for w in seen if "optimizer" in str(w.message)]


# --- an optimizer over a part ------------------------------------------------------------------------------------


# one mini-batch, as the order of several is drawn anew in each step
CLIPPED = {"max_grad_norm": 2, "vf_coef": 5.0, "mini_batch_size": 8}


def head_movements(steps: int, **options: Any) -> tuple[list[float], Any]:
    """How far the head moves in each of several equal steps, its trunk not frozen and not in the optimizer."""
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.v_head.parameters(), lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = build(model, optimizer, options={**CLIPPED, **options})
    start, moved = copy.deepcopy(model.v_head.state_dict()), []
    for _ in range(steps):
        model.v_head.load_state_dict(start)
        before = model.v_head.summary.weight.detach().clone()
        ours.step(*batch())
        moved.append(float((model.v_head.summary.weight.detach() - before).norm()))
    return moved, model


def test_gradients_outside_of_the_optimizer_do_not_pile_up() -> None:
    moved, model = head_movements(3)
    assert moved == pytest.approx([moved[0]] * 3, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.pretrained_model.parameters())


def test_gradients_outside_of_the_optimizer_do_not_count_in_the_norm() -> None:
    model = with_value_head("gpt2")
    model.pretrained_model.requires_grad_(False)
    optimizer = torch.optim.SGD(model.v_head.parameters(), lr=1e-3)
    ours = build(model, optimizer, options=CLIPPED)
    before = model.v_head.summary.weight.detach().clone()
    ours.step(*batch())
    frozen = float((model.v_head.summary.weight.detach() - before).norm())
    assert head_movements(1)[0][0] == pytest.approx(frozen, rel=1e-4)


def test_a_group_that_is_added_later_trains() -> None:
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.v_head.parameters(), lr=1e-2)
    with pytest.warns(UserWarning, match="not in the optimizer"):
        ours = build(model, optimizer)
    optimizer.add_param_group({"params": list(model.pretrained_model.parameters())})
    before = weights(model)
    ours.step(*batch())
    assert not torch.equal(
        weights(model)["pretrained_model.transformer.wte.weight"], before["pretrained_model.transformer.wte.weight"]
    )


# --- brothers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [True, False])
def test_the_scheduler_of_another_optimizer_is_refused(given: bool) -> None:
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3) if given else None
    other = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD(model.parameters(), lr=1e-3), 0.5)
    with pytest.raises(ValueError, match=r"lr_scheduler.*another optimizer"):
        build(model, optimizer, lr_scheduler=other)


def test_the_scheduler_of_a_prepared_optimizer_is_taken() -> None:
    model = with_value_head("gpt2")
    inner = torch.optim.SGD(model.parameters(), lr=1e-3)
    prepared = Accelerator(cpu=True).prepare(inner)
    for optimizer in (inner, prepared):
        for scheduled in (inner, prepared):
            scheduler = torch.optim.lr_scheduler.ExponentialLR(scheduled, 0.5)
            build(model, optimizer, lr_scheduler=scheduler)


@pytest.mark.parametrize("how", ["the same object", "the same model in another wrapper"])
def test_the_policy_is_not_its_own_reference(how: str) -> None:
    model = with_value_head("gpt2")
    reference = model
    if how != "the same object":
        reference = AutoModelForCausalLMWithValueHead.from_pretrained(model.pretrained_model)
    with pytest.raises(ValueError, match=r"ref_model shares .* trainable parameters with model"):
        trainer(model, ref_model=reference)


def test_a_reference_with_shared_frozen_layers_is_taken() -> None:
    model = with_value_head("gpt2")
    trainer(model, ref_model=create_reference_model(model, num_shared_layers=1)).step(*batch())
