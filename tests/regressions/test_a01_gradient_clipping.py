"""Row A1: the gradient's norm is at most `max_grad_norm` at every update of a trainer's life."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.tiny import batch, trainer, with_value_head

LIMIT = 0.05


def norms_at_updates(ours: Any) -> list[float]:
    """Filled with the norm of the whole gradient each time the optimizer steps."""
    norms: list[float] = []

    def look(*args: Any) -> None:
        gradients = [p.grad for p in ours.model.parameters() if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))))

    ours.optimizer.optimizer.register_step_pre_hook(look)
    return norms


@pytest.mark.parametrize("name", ["gpt2", "t5", "lora"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_norm_is_limited_at_every_update(name: str, accumulation: int) -> None:
    lora = {"peft_config": LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)} if name == "lora" else {}
    model = with_value_head("gpt2" if lora else name, **lora)
    far = {"cliprange": 1e6, "cliprange_value": 1e6, "ratio_threshold": 1e6}  # what is clipped has no gradient
    ours = trainer(model, max_grad_norm=LIMIT, mini_batch_size=2, gradient_accumulation_steps=accumulation, **far)
    norms = norms_at_updates(ours)
    for step in range(2):
        ours.step(*batch(seed=step))
    assert len(norms) == 32 // accumulation  # 2 steps of 4 epochs of 4 mini-batches
    assert max(norms) <= LIMIT * (1 + 1e-5)
    assert min(norms) == pytest.approx(LIMIT, rel=1e-3), "nothing was there to clip: the test shows nothing"


def test_without_a_limit_nothing_is_clipped() -> None:
    ours = trainer("gpt2", mini_batch_size=2)
    norms = norms_at_updates(ours)
    ours.step(*batch())
    assert len(norms) == 16
    assert min(norms) > LIMIT


def test_the_limit_may_be_changed_on_the_way() -> None:
    ours = trainer("gpt2", mini_batch_size=2)
    norms = norms_at_updates(ours)
    ours.step(*batch())
    ours.config.max_grad_norm = LIMIT
    ours.step(*batch())
    assert max(norms[16:]) <= LIMIT * (1 + 1e-5) < min(norms[:16])
