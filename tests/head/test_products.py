"""Products of bfloat16 numbers that are summed up in float32, as CUDA devices can, on a CPU that is taught it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trl_step.head import products
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The CPU has torch's operators with `out_dtype`; the names of those that are called, in the list given."""
    calls: list[str] = []
    library = torch.library.Library("aten", "IMPL", "CPU")

    def mm(left: torch.Tensor, right: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        calls.append("mm")
        return torch.mm(left.to(out_dtype), right.to(out_dtype))

    def addmm_out(
        total: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        out_dtype: torch.dtype,
        *,
        beta: float = 1,
        alpha: float = 1,
        out: torch.Tensor,
    ) -> torch.Tensor:
        calls.append("addmm")
        assert total.dtype == out_dtype == out.dtype
        return out.copy_(torch.addmm(total, left.to(out_dtype), right.to(out_dtype), beta=beta, alpha=alpha))

    library.impl("mm.dtype", mm)
    library.impl("addmm.dtype_out", addmm_out)
    monkeypatch.setattr(products, "DEVICES", ["cuda", "cpu"])
    yield calls
    library._destroy()


def test_a_cpu_rounds_and_cuda_before_torch_2_8_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    assert not products.sums_in_float32(one)
    monkeypatch.setattr(products, "DEVICES", ["cpu"])
    assert products.sums_in_float32(one)
    assert not products.sums_in_float32(one.float())
    monkeypatch.setattr(products, "_HAS_OUT_DTYPE", False)
    assert not products.sums_in_float32(one)


def test_a_product_keeps_what_bfloat16_would_round(as_on_cuda: list[str]) -> None:
    left, right = torch.tensor([[1.0, 2.0**-10]]).bfloat16(), torch.ones(2, 1).bfloat16()
    assert products.product(left, right).item() == 1 + 2.0**-10
    total = torch.full((1, 1), 7.0)
    products.add_product(total, left, right.float(), first=True)
    assert total.item() == 1 + 2.0**-10
    products.add_product(total, left, right.float(), first=False)
    assert total.item() == 2 * (1 + 2.0**-10)
    assert as_on_cuda == ["mm", "mm", "addmm"]


def weight_error() -> float:
    """Of the head's gradient in bfloat16 over sixteen chunks, relative to that in float64 from the same numbers."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(512, 32).bfloat16(), (0.3 * torch.randn(64, 32)).bfloat16()
    labels, slopes = torch.randint(64, (512,)), torch.randn(512)
    exact = weight.double().requires_grad_()
    log_p = torch.log_softmax(hidden.double() @ exact.T, dim=-1).gather(1, labels[:, None]).squeeze(1)
    (log_p * slopes).sum().backward()
    master = weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = policy_gradient_rows(hidden, labels, OutputHead(master), lambda rows, _: slopes[rows])
    found.anchor.backward()
    return float((master.grad.double() - exact.grad).norm() / exact.grad.norm())


def test_the_heads_gradient_is_closer_without_rounding_per_chunk(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("trl_step.head.tiles.CHUNK_ELEMENTS", 32 * 64)
    monkeypatch.setattr("trl_step.head.tiles.MIN_CHUNK_ROWS", 1)
    rounded = weight_error()
    calls = request.getfixturevalue("as_on_cuda")
    kept = weight_error()
    assert calls.count("addmm") == 15
    assert kept < rounded, "most of the error is that of the factors, which are rounded either way"
