"""The sum of the head's gradient, which is handed out in the memory that it takes."""

from __future__ import annotations

import pytest
import torch

from trl_step.head import weight_gradient
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead
from trl_step.head.weight_gradient import WeightGradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_by_hand(dtype: torch.dtype) -> None:
    """Three rows of width 2: products over all columns, then over columns 1 and 2, then row 2 and row 0 alone."""
    total = WeightGradient(torch.empty(3, 2, dtype=dtype), dtype, empty=False)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    one = torch.tensor([[1.0], [2.0], [3.0]], dtype=dtype)
    total.add(slice(0, 3), one, torch.tensor([[1.0, 10.0]], dtype=wide), first=True)
    total.add(slice(1, 3), one[1:], torch.tensor([[0.5, 0.0]], dtype=wide), first=False)
    total.add_rows(torch.tensor([2, 0, 2]), torch.tensor([[1.0, 1.0], [7.0, 0.0], [2.0, 0.0]], dtype=wide))
    found = total.handed_out(torch.tensor(2.0))
    assert found.dtype == dtype
    assert found.tolist() == [[16.0, 20.0], [6.0, 40.0], [15.0, 62.0]]


@pytest.mark.parametrize("count", [2, 7, 64])
@pytest.mark.parametrize("at_once", [1, 10, 1 << 24])
def test_a_narrow_gradient_takes_the_memory_of_half_the_sum(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_gradient, "NARROWED_AT_ONCE", at_once)
    torch.manual_seed(0)
    total = WeightGradient(torch.empty(count, 3, dtype=torch.bfloat16), torch.bfloat16, empty=True)
    rows = torch.randn(count, 3)
    total.add_rows(torch.arange(count), rows)
    found = total.handed_out(None)
    assert torch.equal(found, rows.bfloat16())
    assert found.is_contiguous()
    assert found.untyped_storage().nbytes() == -(-count // 2) * 3 * 4


def test_a_weight_that_lies_column_after_column() -> None:
    weight = torch.empty(3, 4, dtype=torch.bfloat16).t()
    total = WeightGradient(weight, torch.bfloat16, empty=True)
    total.add_rows(torch.tensor([3, 0]), torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert total.handed_out(None).tolist() == [[4.0, 5.0, 6.0], [0.0] * 3, [0.0] * 3, [1.0, 2.0, 3.0]]


def test_every_chunk_is_added_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 chunks of a row each: summed up in bfloat16, where 256 + 1 is 256, the gradient would stop at 256."""
    monkeypatch.setattr("trl_step.head.tiles.CHUNK_ELEMENTS", 2)
    monkeypatch.setattr("trl_step.head.tiles.MIN_CHUNK_ROWS", 1)
    hidden, weight = torch.ones(300, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    slopes = torch.full((300,), 2.0)  # d loss / d weight of the label is slope / 2
    labels = torch.zeros(300, dtype=torch.int64)
    policy_gradient_rows(hidden, labels, OutputHead(weight), lambda rows, _: slopes[rows]).anchor.backward()
    assert weight.grad is not None
    assert weight.grad.flatten().tolist() == [300.0, -300.0]
