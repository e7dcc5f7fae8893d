"""Mini-batches that run in parts: the numbers stay, whether the cut was asked for or memory ran out."""

import warnings

import numpy as np
import pytest
import torch

from tests import tiny
from trl_step.trainer.engine.memory_budget import MemoryBudget


def test_split_by_hand():
    assert [p.tolist() for p in MemoryBudget(10).split([4, 5, 3, 10, 11, 1])] == [[0, 1], [2], [3], [4], [5]]
    assert [p.tolist() for p in MemoryBudget().split([4, 5, 3])] == [[0, 1, 2]]


def test_split_into_samples_of_one_length():
    budget = MemoryBudget(10)
    budget.one_length = True
    assert [p.tolist() for p in budget.split([4, 4, 4, 5, 3, 3])] == [[0, 1], [2], [3], [4, 5]]


@pytest.mark.parametrize("gap", [0, 1, 2, 3])
def test_as_many_parts_as_the_process_with_the_most(gap):
    parts = MemoryBudget(10).split_alike([4, 5, 3], lambda own: own + gap)
    assert [p.tolist() for p in parts] == [[0, 1], [2], *([[]] * gap)]
    assert {p.dtype for p in parts} == {np.dtype(np.int64)}, "they are used as indices"


def test_halving():
    sizes, seen = MemoryBudget(), []

    def work(parts):
        seen.append([len(p) for p in parts])
        if max(seen[-1]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    with pytest.warns(UserWarning, match="out of memory in a forward pass of 7 samples: from now on 3"):
        assert sizes.run([1] * 7, work) == "done"
    assert seen == [[7], [3, 3, 1], [1] * 7]


def test_other_errors_and_single_samples_are_handed_on():
    def fail(message):
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="shape"):
        MemoryBudget().run([1, 1], lambda parts: fail("wrong shape"))
    with pytest.raises(RuntimeError, match="out of memory"):
        MemoryBudget().run([1], lambda parts: fail("out of memory"))


def two_steps(trainer):
    stats = [trainer.step(*tiny.batch(seed=seed)) for seed in (1, 2)]
    scalars = [{k: v for k, v in s.items() if isinstance(v, float) and not k.startswith("time/")} for s in stats]
    return scalars, tiny.weights(trainer.model)


def assert_same(a, b):
    for mine, yours in zip(a[0], b[0], strict=True):
        assert mine == pytest.approx(yours, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(a[1], b[1], rtol=1e-4, atol=1e-5)


OPTIONS = {"mini_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": 0.5}


@pytest.mark.parametrize("extra", [{}, {"kl_penalty": "full"}, {"gradient_checkpointing": True}], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_token_budget_changes_no_number(name, extra):
    whole = two_steps(tiny.trainer(name, **OPTIONS, **extra))
    parts = two_steps(tiny.trainer(name, **OPTIONS, **extra, forward_tokens=20))
    assert_same(parts, whole)


class LittleMemory(torch.nn.Module):
    """Runs out of memory when more than `rows` samples come at once, in the forward or the backward pass."""

    def __init__(self, inner, rows, in_backward):
        super().__init__()
        self.inner, self.rows, self.in_backward, self.failures = inner, rows, in_backward, 0

    def forward(self, hidden, *args, **kwargs):
        if hidden.shape[0] <= self.rows:
            return self.inner(hidden, *args, **kwargs)
        if self.in_backward and hidden.requires_grad:
            hidden.register_hook(self.fail)
            return self.inner(hidden, *args, **kwargs)
        if self.in_backward:
            return self.inner(hidden, *args, **kwargs)
        return self.fail(hidden)

    def fail(self, _):
        self.failures += 1
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize("in_backward", [False, True])
def test_memory_that_runs_out_changes_no_number(in_backward):
    whole = two_steps(tiny.trainer("gpt2", **OPTIONS))
    model = tiny.with_value_head("gpt2")
    block = model.pretrained_model.transformer.h[1]
    block.mlp = LittleMemory(block.mlp, rows=2, in_backward=in_backward)
    reference = tiny.with_value_head("gpt2")
    trainer = tiny.trainer(model, reference, **OPTIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parts = two_steps(trainer)
    assert block.mlp.failures == 1
    assert sum("out of memory in a forward pass" in str(w.message) for w in caught) == 1
    renamed = {key.replace(".mlp.inner.", ".mlp."): value for key, value in parts[1].items()}
    assert_same((parts[0], renamed), whole)
