"""The updater of accelerators, on a CPU: the numbers of the one that reads each verdict, and no look in between."""

from __future__ import annotations

import sys
import traceback
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.trainer.runs.state_tools import changed, weights_and_optimizer
from trl_step import PPOTrainer
from trl_step.trainer.engine.engine import FusedEngine
from trl_step.trainer.updates.on_device import OnDeviceUpdater, may_decide_on_device
from trl_step.trainer.updates.updater import Updater

SIZES = {
    "each an update": {"mini_batch_size": 2},
    "accumulated": {"mini_batch_size": 2, "gradient_accumulation_steps": 2},
    "in parts": {"mini_batch_size": 4, "forward_tokens": 16},
    "clipped": {"mini_batch_size": 4, "max_grad_norm": 0.1},
    "coupled": {
        "mini_batch_size": 4,
        "forward_tokens": 16,
        "policy_loss": "gspo",
        "cliprange": 0.01,
        "entropy_coef": 0.05,
    },
    "warming up": {"mini_batch_size": 2, "gradient_accumulation_steps": 2, "value_warmup_steps": 1},
}


def build(model: Any = "gpt2", waitless: bool = True, cls: type = PPOTrainer, **options: Any) -> PPOTrainer:
    """A tiny trainer with one of the two updaters."""
    ours = tiny.trainer(model, cls=cls, **options)
    assert may_decide_on_device(ours.accelerator, ours.model, ours.optimizer, ours.config)
    kind = OnDeviceUpdater if waitless else Updater
    ours._updater = kind(ours._processes, ours.model, ours.optimizer, ours.model_params, ours.config)
    if isinstance(ours, tiny.WatchedUpdates):
        ours.watch()
    return ours


@pytest.mark.parametrize("size", SIZES)
def test_the_numbers_are_those_of_the_other_updater(size: str) -> None:
    seen = []
    for waitless in (True, False):
        ours = build(waitless=waitless, **SIZES[size])
        stats = [ours.step(*tiny.batch(seed=seed)) for seed in (1, 2)]
        scalars = [{k: v for k, v in s.items() if isinstance(v, float) and "time/" not in k} for s in stats]
        seen.append((scalars, weights_and_optimizer(ours)))
    assert seen[0][0] == seen[1][0]
    assert changed(seen[0][1], seen[1][1]) == []


class Poisoned(tiny.WatchedUpdates):
    """Every mini-batch whose number is in `poison` has ratios that are no number, and gradients to match."""

    poison: Any = ()
    calls = 0

    def _update(self, loss: torch.Tensor, stats: dict[str, torch.Tensor], mask: torch.Tensor) -> Any:
        hit = self.calls in self.poison
        self.calls += 1
        if hit:
            loss, stats = loss * float("nan"), {**stats, "policy/ratio": stats["policy/ratio"] * float("nan")}
        return super()._update(loss, stats, mask)


@pytest.mark.filterwarnings("ignore:.*mini-batch")
@pytest.mark.parametrize("poison", [(0, 1), (0,), (1,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_skipped_mini_batches_leave_no_trace(size: str, poison: tuple[int, ...]) -> None:
    seen = []
    for waitless in (True, False):
        ours = build(waitless=waitless, cls=type("Case", (Poisoned,), {"poison": poison}), **SIZES[size])
        stats = ours.step(*tiny.batch())
        assert stats["ppo/policy/skipped"] == len(poison)
        seen.append((stats["ppo/loss/total"], weights_and_optimizer(ours)))
    assert seen[0][0] == seen[1][0]
    assert changed(seen[0][1], seen[1][1]) == []
    assert all(bool(torch.isfinite(weight).all()) for weight in ours.model.parameters())


def test_a_step_that_is_skipped_whole_keeps_every_bit() -> None:
    ours = build(mini_batch_size=2, max_grad_norm=1.0)
    ours.step(*tiny.batch())
    before = weights_and_optimizer(ours)
    ours.config.ratio_threshold = 0.5
    with pytest.warns(UserWarning, match=r"mean ratio of 16 mini-batches exceeds ratio_threshold=0\.5"):
        stats = ours.step(*tiny.batch(seed=2))
    assert stats["ppo/policy/skipped"] == 16
    assert stats["ppo/loss/total"] == 0
    assert changed(before, weights_and_optimizer(ours)) == []


def test_no_update_behind_a_loss_that_is_not_finite() -> None:
    class Broken(tiny.WatchedUpdates):
        calls = 0

        def _update(self, loss: torch.Tensor, *rest: Any) -> Any:
            self.calls += 1
            if self.calls == 3:
                self.before = weights_and_optimizer(self)
                loss = loss + float("inf")
            return super()._update(loss, *rest)

    ours = build(cls=Broken, mini_batch_size=2)
    with pytest.raises(ValueError, match="the loss of a mini-batch is not finite"):
        ours.step(*tiny.batch())
    assert changed(ours.before, weights_and_optimizer(ours)) == []
    ours.step(*tiny.batch())  # and it can go on


WAITS = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"))
LOOK_AT_A_MASK = ("_ignore_causal_mask_sdpa", "masking_utils.py")
ON_A_CPU_ALONE = {
    ("backward", "policy_gradient.py"),  # the factor of the head's gradient
    LOOK_AT_A_MASK,
}


class NoLook(TorchDispatchMode):
    """Fails where a GPU would make the host wait: for a number, or for the size of a selection."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        selects = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if name in WAITS or selects:
            frames = traceback.extract_stack()
            if not any((f.name, f.filename.rpartition("/")[2]) in ON_A_CPU_ALONE for f in frames):
                raise AssertionError(f"{name} waits:\n" + "".join(traceback.format_list(frames[-8:])))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gpt2", "llama", "frozen bottom"])
@pytest.mark.parametrize(
    ("size", "padding_free"), [*((size, None) for size in SIZES), ("each an update", True), ("in parts", True)]
)
def test_nothing_waits_inside_a_mini_batch(
    size: str, name: str, padding_free: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.with_value_head("gpt2" if name == "frozen bottom" else name)
    if name == "frozen bottom":
        for parameter in (*model.pretrained_model.transformer.h[0].parameters(), *embeddings(model)):
            parameter.requires_grad_(False)
    if padding_free:  # as on a GPU: no mask is looked at
        monkeypatch.setattr(sys.modules[__name__], "ON_A_CPU_ALONE", ON_A_CPU_ALONE - {LOOK_AT_A_MASK})
    ours = build(model, **SIZES[size], padding_free=padding_free)
    ours.step(*tiny.batch())
    calls = refuse_looks_inside(FusedEngine, "train", monkeypatch)
    ours.step(*tiny.batch(seed=2))
    assert len(calls) == 4 * np.ceil(8 / ours.config.mini_batch_size)


@pytest.mark.parametrize(("penalty", "function", "count"), [("kl", "sweep", 2), ("full", "_side_by_side", 1)])
def test_nothing_waits_inside_the_passes_without_gradients(
    penalty: str, function: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = build(kl_penalty=penalty, mini_batch_size=2)
    ours.step(*tiny.batch())
    calls = refuse_looks_inside(FusedEngine, function, monkeypatch)
    ours.step(*tiny.batch(seed=2))
    assert len(calls) == count


def refuse_looks_inside(module: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From now on `module.name` fails where it would make the host wait for a GPU; its calls, in the list given."""
    function, calls = getattr(module, name), list[str]()

    def watched(*args: Any, **options: Any) -> Any:
        calls.append(name)
        with NoLook(), pytest.MonkeyPatch.context() as reads:
            for method in ("tolist", "numpy", "cpu"):  # what no dispatch sees
                reads.setattr(torch.Tensor, method, refuse)
            return function(*args, **options)

    monkeypatch.setattr(module, name, watched)
    return calls


def embeddings(model: Any) -> Any:
    return [*model.pretrained_model.transformer.wte.parameters(), *model.pretrained_model.transformer.wpe.parameters()]


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a tensor is read in mid-step")


def test_an_optimizer_that_cannot_leave_a_step_out_waits() -> None:
    model = tiny.with_value_head("gpt2")
    plain = torch.optim.SGD(model.parameters(), lr=0.1, fused=False)
    ours = PPOTrainer(tiny.config(), model, None, tiny.tokenizer(), optimizer=plain)
    assert not may_decide_on_device(ours.accelerator, ours.model, ours.optimizer, ours.config)
    assert type(ours._updater) is Updater
