"""Row C5: layers that policy and reference share are the same tensors, frozen, also through training."""

from __future__ import annotations

import pytest
import torch

from tests.models.tiny_models import CAUSAL, inputs_of, wrapped
from trl_step.models import create_reference_model


@pytest.mark.parametrize("name", [*CAUSAL, "t5", "bart"])
def test_the_same_tensors(name: str) -> None:
    model = wrapped(name)
    reference = create_reference_model(model, num_shared_layers=1)
    ours, theirs = ({p.data_ptr() for p in each.parameters()} for each in (model, reference))
    shared = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    assert shared
    assert ours & theirs == {parameter.data_ptr() for parameter in shared}


def test_memory_is_that_of_what_is_not_shared() -> None:
    model = wrapped()
    reference = create_reference_model(model, num_shared_layers=2)
    both = {p.data_ptr(): p.numel() for each in (model, reference) for p in each.parameters()}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(both.values()) == sum(p.numel() for p in model.parameters()) + trained


def test_training_moves_the_policy_and_leaves_the_reference() -> None:
    model = wrapped()
    reference = create_reference_model(model, num_shared_layers=2)
    before = reference(**inputs_of())[0]
    assert torch.equal(model(**inputs_of())[0], before)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**inputs_of())[0].square().mean().backward()
    optimizer.step()
    assert torch.equal(reference(**inputs_of())[0], before)
    assert not torch.equal(model(**inputs_of())[0], before)
    assert model.pretrained_model.lm_head.weight is reference.pretrained_model.lm_head.weight
