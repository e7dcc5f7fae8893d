from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.models.tiny_models import CAUSAL, SEQ2SEQ, inputs_of, lora, shake_adapters, some_rows, wrapped
from trl_step.models.inner_model import output_embedding


def hooks_of(model: nn.Module) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]


@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_chosen_rows_are_rows_of_the_whole(name: str) -> None:
    model, inputs = wrapped(name), inputs_of(name)
    rows = some_rows(inputs)
    before = hooks_of(model)
    logits, _, values = model(**inputs)
    chosen_logits, loss, chosen_values = model(**inputs, rows=rows)
    assert loss is None
    assert chosen_logits.dtype == torch.float32
    torch.testing.assert_close(chosen_logits, logits[rows])
    torch.testing.assert_close(chosen_values, values[rows])
    assert hooks_of(model) == before


@pytest.mark.parametrize("name", ["gpt2", "opt_projected", "t5"])
def test_a_head_gets_the_rows_that_enter_the_output_embedding(name: str) -> None:
    model, inputs = wrapped(name), inputs_of(name)
    rows = some_rows(inputs)
    seen = []

    def head(hidden: torch.Tensor, embedding: nn.Module) -> tuple[str, torch.Tensor]:
        assert embedding is output_embedding(model.pretrained_model)
        seen.append(hidden)
        return "mine", embedding(hidden)

    (mark, own), loss, values = model(**inputs, rows=rows, head=head)
    want, _, want_values = model(**inputs, rows=rows)
    assert (mark, loss, len(seen)) == ("mine", None, 1)
    assert seen[0].dim() == 2
    torch.testing.assert_close(own, want)
    torch.testing.assert_close(values, want_values)


def test_with_a_head_the_models_own_head_multiplies_nothing() -> None:
    model, inputs = wrapped(), inputs_of()
    sizes = []
    output_embedding(model.pretrained_model).register_forward_hook(lambda _m, _a, logits: sizes.append(logits.numel()))
    model(**inputs, rows=some_rows(inputs), head=lambda hidden, embedding: hidden.sum())
    assert sizes == [0]


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart"])
def test_gradients_through_chosen_rows_are_those_of_the_whole(name: str) -> None:
    model, inputs = wrapped(name), inputs_of(name)
    rows = some_rows(inputs)

    def gradients(by_rows: bool) -> dict[str, torch.Tensor]:
        model.zero_grad()
        logits, _, values = model(**inputs, rows=rows if by_rows else None)
        if not by_rows:
            logits, values = logits[rows], values[rows]
        (torch.log_softmax(logits, -1)[:, 3].sum() + values.square().sum()).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    torch.testing.assert_close(gradients(by_rows=True), gradients(by_rows=False))


def test_a_head_carries_gradients_to_every_weight() -> None:
    model, inputs = wrapped(), inputs_of()
    result, _, values = model(
        **inputs, rows=some_rows(inputs), head=lambda hidden, embedding: embedding(hidden).square().sum()
    )
    (result + values.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_no_row_at_all() -> None:
    model, inputs = wrapped(), inputs_of()
    rows = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    logits, _, values = model(**inputs, rows=rows)
    assert logits.shape == (0, 40)
    assert values.shape == (0,)


def test_under_an_adapter() -> None:
    model, inputs = wrapped(peft_config=lora(target_modules=["c_attn", "lm_head"], fan_in_fan_out=False)), inputs_of()
    shake_adapters(model)
    rows = some_rows(inputs)
    logits, _, values = model(**inputs)
    chosen_logits, _, chosen_values = model(**inputs, rows=rows)
    torch.testing.assert_close(chosen_logits, logits[rows])
    torch.testing.assert_close(chosen_values, values[rows])


def test_hooks_are_gone_after_an_error() -> None:
    model, inputs = wrapped(), inputs_of()
    before = hooks_of(model)

    def broken(hidden: torch.Tensor, embedding: nn.Module) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        model(**inputs, rows=some_rows(inputs), head=broken)
    with pytest.raises(IndexError):
        model(inputs["input_ids"] + 1000)
    assert hooks_of(model) == before


def test_the_callers_inputs_are_left_alone() -> None:
    model, inputs = wrapped(), inputs_of()
    rows = some_rows(inputs)
    kept = copy.deepcopy((inputs, rows))
    model(**inputs, rows=rows)
    assert torch.equal(rows, kept[1])
    assert all(torch.equal(inputs[name], kept[0][name]) for name in inputs)


def test_what_cannot_be_is_said() -> None:
    model, inputs = wrapped(), inputs_of()
    rows = some_rows(inputs)
    with pytest.raises(ValueError, match="head= needs rows="):
        model(**inputs, head=lambda hidden, embedding: hidden)
    with pytest.raises(ValueError, match=r"bool \[B, S\] or int64 \[N\]"):
        model(**inputs, rows=rows.long())
    with pytest.raises(ValueError, match=r"rows has shape \(3, 5\), but the decoder's positions are \(3, 6\)"):
        model(**inputs, rows=rows[:, 1:])
    with pytest.raises(ValueError, match="labels= and rows="):
        model(**inputs, rows=rows, labels=inputs["input_ids"])


def test_a_backbone_that_the_model_does_not_name_is_read_from_all_states(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = wrapped(), inputs_of()
    want = model(**inputs)
    monkeypatch.setattr(model.pretrained_model, "get_decoder", lambda: model.pretrained_model)
    got = model(**inputs)
    torch.testing.assert_close(got[2], want[2])
