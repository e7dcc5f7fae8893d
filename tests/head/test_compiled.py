"""Tiles of the head in one kernel, by torch's compiler for CPUs."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from trl_step.head import compiled, tiles
from trl_step.head.logprobs import token_logprobs
from trl_step.head.policy_gradient import policy_gradient_rows
from trl_step.head.tiles import OutputHead


def made(rows: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, OutputHead]:
    torch.manual_seed(0)
    hidden = torch.randn(rows, 8).bfloat16().requires_grad_()
    weight = torch.randn(vocabulary, 8).bfloat16().requires_grad_()
    return hidden, torch.randint(vocabulary, (rows,)), OutputHead(weight, scale=0.5)


def numbers(rows: int, vocabulary: int) -> list[torch.Tensor]:
    """Log-probs, those of a pass with gradients, entropies, gradients of hidden states and weight."""
    hidden, labels, head = made(rows, vocabulary)
    slopes = torch.linspace(-1, 1, rows)
    found = policy_gradient_rows(hidden, labels, head, lambda at, _: slopes[at], temperature=0.7)
    gradients = torch.autograd.grad(found.anchor, (hidden, head.weight))
    return [token_logprobs(hidden, labels, head, 0.7), found.logprobs, found.entropy, *gradients]


@pytest.fixture
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Several chunks and tiles, and last ones that are smaller, compiled; the types of devices that are."""
    devices = ["cpu"]
    monkeypatch.setattr(compiled, "DEVICES", devices)
    monkeypatch.setattr(tiles, "CHUNK_ELEMENTS", 10 * 23)
    monkeypatch.setattr(tiles, "MIN_CHUNK_ROWS", 1)
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 10 * 7)
    return devices


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles with g++")
def test_the_numbers_are_those_without_a_compiler(on_cpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: torch's compiler takes half a minute for its first kernel."""
    calls = 0
    kernel = compiled._kernel

    def counted(keep: bool) -> object:
        nonlocal calls
        calls += 1
        return kernel(keep)

    monkeypatch.setattr(compiled, "_kernel", counted)
    for rows, vocabulary in ((37, 23), (10, 40)):
        found = numbers(rows, vocabulary)
        assert on_cpus == ["cpu"], "it was not compiled"
        assert calls > 8
        with monkeypatch.context() as without:
            without.setattr(compiled, "DEVICES", [])
            expected = numbers(rows, vocabulary)
        # a weight that is rounded to bfloat16 may be rounded to its other neighbour
        for one, other, tolerance in zip(found, expected, (1e-6, 1e-6, 5e-3, 1e-2, 1e-2), strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_an_annealed_temperature_compiles_nothing_anew(on_cpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo runs, but not the compiler behind it."""
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compiled._kernel.cache_clear()
    torch.compiler.reset()
    hidden, labels, head = made(37, 23)
    frames = []
    for temperature in (1.0, 0.9, 0.8, 0.5):
        found = token_logprobs(hidden, labels, head, temperature)
        frames.append(counter.frame_count)
        logits = hidden.float() @ head.weight.float().t() * (head.scale / temperature)
        expected = torch.log_softmax(logits, dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    compiled._kernel.cache_clear()
    assert on_cpus == ["cpu"], "it was not compiled"
    assert frames[0] > 0
    assert len(set(frames)) == 1, frames


def test_what_cannot_be_compiled_runs_as_it_is(
    on_cpus: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0

    def no_compiler(*_: object, **__: object) -> object:
        nonlocal tries
        tries += 1
        raise RuntimeError("no compiler was found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    compiled._kernel.cache_clear()
    found = numbers(37, 23)
    assert (tries, on_cpus) == (1, []), "it is tried once"
    (said,) = [record for record in caplog.records if record.name == compiled.__name__]
    assert said.levelname == "WARNING"
    assert "no compiler was found" in said.getMessage()
    for one, other in zip(found, numbers(37, 23), strict=True):
        assert torch.equal(one, other)


def test_memory_that_runs_out_is_no_reason_to_compile_no_more(
    on_cpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(compiled, "_kernel", lambda *_: no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        numbers(37, 23)
    assert on_cpus == ["cpu"]


def test_other_heads_and_single_rows_are_left_alone(on_cpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> object:
        raise AssertionError("it is compiled")

    monkeypatch.setattr(compiled, "_kernel", refuse)
    hidden, labels, head = made(37, 23)
    token_logprobs(hidden, labels, head._replace(softcap=2.0))
    token_logprobs(hidden, labels, head._replace(bias=torch.zeros(23).bfloat16()))
    token_logprobs(hidden[:1], labels[:1], head)
    assert on_cpus == ["cpu"]
