"""The faster library's products against torch's own: forward, gradients, layouts, and when it is left alone."""

import pytest
import torch
import torch.nn.functional as F

from trl_step import products


@pytest.fixture
def always(monkeypatch):
    """oneDNN on whatever processor this is, and for the smallest products."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_ROWS", 1)
    monkeypatch.setattr(products, "MIN_MULTIPLICATIONS", 0)


@pytest.fixture
def calls(always, monkeypatch):
    """How many products oneDNN was asked for."""
    made = []
    plain = products._onednn
    monkeypatch.setattr(products, "_onednn", lambda *args: made.append(1) or plain(*args))
    return made


def gradients(function, leaves, upstream):
    output = function()
    return output, *torch.autograd.grad(output, leaves, upstream)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (2, 1, 4)], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("transposed", [True, False], ids=["conv1d", "linear"])
@pytest.mark.parametrize("sizes", [(5, 7), (50, 3), (3, 50)], ids=str)
def test_a_dense_layer_and_its_gradients(calls, shape, bias, transposed, sizes):
    inner, outer = sizes
    input = torch.randn(*shape, inner, requires_grad=True)
    weight = torch.randn(*((inner, outer) if transposed else (outer, inner)), requires_grad=True)
    leaves = [input, weight] + ([torch.randn(outer, requires_grad=True)] if bias else [])
    shift, upstream = leaves[2] if bias else None, torch.randn(*shape, outer)

    expected = gradients(lambda: F.linear(input, weight.t() if transposed else weight, shift), leaves, upstream)
    assert not calls
    result = gradients(lambda: products.linear(input, weight, shift, transposed), leaves, upstream)
    assert len(calls) == 3
    for one, other in zip(result, expected, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride() or one.is_contiguous()
    with torch.no_grad():
        torch.testing.assert_close(products.linear(input, weight, shift, transposed), expected[0])


@pytest.mark.parametrize("bias", [torch.ones(1).expand(7), torch.randn(14)[::2], torch.randn(7, 3)[:, 1]])
def test_a_bias_whose_numbers_do_not_lie_side_by_side(calls, bias):
    input, weight = torch.randn(4, 5), torch.randn(7, 5)
    torch.testing.assert_close(products.linear(input, weight, bias), F.linear(input, weight, bias))
    assert calls


class Doubled(torch.Tensor):
    """Stands for a quantized weight: its numbers mean something else than they say."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return F.linear(args[0], 2 * args[1].as_subclass(torch.Tensor), args[2])
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_weight_of_another_class_multiplies_as_it_says(calls):
    input, weight = torch.randn(4, 5), torch.randn(7, 5)
    for one in (weight.as_subclass(Doubled), torch.nn.Parameter(weight.as_subclass(Doubled))):
        torch.testing.assert_close(products.linear(input, one).as_subclass(torch.Tensor), 2 * input @ weight.t())
    assert not calls


def test_only_the_gradients_that_are_asked_for(calls):
    input, weight = torch.randn(4, 5), torch.randn(3, 5)
    input.requires_grad_()
    products.linear(input, weight).sum().backward()
    assert len(calls) == 2
    frozen, trained = torch.randn(4, 5), weight.clone().requires_grad_()
    products.linear(frozen, trained).sum().backward()
    assert len(calls) == 4
    torch.testing.assert_close(input.grad, weight.sum(0).expand(4, 5))
    torch.testing.assert_close(trained.grad, frozen.sum(0).expand(3, 5))


def test_few_sizes_are_compiled_for_many_numbers_of_rows(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    sizes = {rows: products.padded_rows(rows, cpu) for rows in range(1, 5000)}
    assert all(rows == size for rows, size in sizes.items() if rows < products.MIN_ROWS)
    assert all(rows <= size <= rows + max(7, rows // 16) for rows, size in sizes.items())
    assert len({size for rows, size in sizes.items() if 1024 <= rows <= 2048}) == 17
    assert sizes[1024] == 1024
    assert products.padded_rows(1025, torch.device("meta")) == 1025
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert products.padded_rows(1025, cpu) == 1025


def test_what_is_left_to_torch(calls, monkeypatch):
    left, right = torch.randn(4, 5), torch.randn(3, 5)
    assert products.takes_onednn(left, right)
    products.product(left.double(), right.double().t())
    products.linear(left.bfloat16(), right.bfloat16())
    products.linear(left.to("meta"), right.to("meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(left, right).dtype == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    products.linear(left, right)
    monkeypatch.undo()
    assert not calls
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert not products.takes_onednn(torch.randn(1024, 1024), torch.randn(1024, 1024))


def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    wide = torch.randn(1024, 1024)
    assert products.takes_onednn(wide, wide)
    assert not products.takes_onednn(wide[: products.MIN_ROWS - 1], wide)  # the weight is read, whoever reads it
    assert not products.takes_onednn(wide[:, :8], wide[:8, :8])
    assert not products.takes_onednn(torch.empty(3, 0), torch.empty(0, 3))


def test_the_choice_follows_from_the_processor_alone(monkeypatch):
    def choice(**capabilities):
        products.onednn_is_faster.cache_clear()
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        return products.onednn_is_faster()

    try:
        assert not choice()
        assert not choice(cpu_name="Intel(R) Xeon(R)", avx512_f=True)
        assert not choice(cpu_name="AMD EPYC 7543", avx512_f=False)
        known = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
        assert choice(cpu_name="AMD EPYC 9755", avx512_f=True) == known
        monkeypatch.delattr(torch.cpu, "get_capabilities")  # an older torch
        products.onednn_is_faster.cache_clear()
        assert not products.onednn_is_faster()
    finally:
        products.onednn_is_faster.cache_clear()
