"""The wrapper inside DistributedDataParallel: one process of gloo, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from tests.models.tiny_models import inputs_of, same_state, shake_adapters, some_rows, wrapped


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_every_weight_gets_its_gradient_through_rows_and_head(name: str) -> None:
    """DDP looks for unused parameters in what forward returns, also in what a head returns."""
    model, inputs = wrapped(name), inputs_of(name)
    wrapped_again = DistributedDataParallel(model, find_unused_parameters=True)

    def gradients(forward: torch.nn.Module) -> dict[str, torch.Tensor]:
        model.zero_grad()
        result, _, values = forward(
            **inputs, rows=some_rows(inputs), head=lambda hidden, embedding: (embedding(hidden),)
        )
        (result[0].square().sum() + values.sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    torch.testing.assert_close(gradients(wrapped_again), gradients(model))


@pytest.mark.usefixtures("process_group")
def test_state_dict_through_ddp() -> None:
    model, other = DistributedDataParallel(shake_adapters(wrapped())), DistributedDataParallel(wrapped())
    state = model.state_dict()
    assert "module.v_head.summary.weight" in state
    assert "module.transformer.wte.weight" in state
    other.load_state_dict(state)
    assert same_state(model, other)
