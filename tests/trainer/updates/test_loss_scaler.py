"""Training in float16: accelerate scales the loss, and leaves out an update whose gradient overflows.

accelerate has no loss scaler on a CPU, but torch does: the trainers here have what accelerate gives on a GPU.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.utils import AutocastKwargs

from tests import tiny
from tests.trainer.runs.state_tools import changed, everything, weights_and_optimizer
from tests.trainer.updates.test_on_device import SIZES, Poisoned
from trl_step import PPOTrainer
from trl_step.trainer.processes import accelerate_state
from trl_step.trainer.processes.accelerate_state import OwnPrecision
from trl_step.trainer.updates.optimizers import make_updater
from trl_step.trainer.updates.updater import Updater

pytestmark = pytest.mark.filterwarnings("ignore:the KL divergence|the responses differ")

SCALE = 2.0**16
IN_FLOAT16 = {"cpu": True, "mixed_precision": "fp16"}
SCALED_ALONE = {**IN_FLOAT16, "kwargs_handlers": [AutocastKwargs(enabled=False)]}
"""The loss is scaled, and all is computed in float32: only the scale may make a difference."""
OPTIMIZERS = {
    "adam": None,
    "adam unfused": lambda parameters: torch.optim.Adam(parameters, lr=1e-3, fused=False),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


class Float16(OwnPrecision):
    """What `Accelerator.__init__` sets up for float16 on a GPU."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert self.mixed_precision == "fp16"
        self.native_amp = True
        self.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000)


class Scaled(tiny.WatchedUpdates):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(accelerate_state, "OwnPrecision", Float16):
            super().__init__(*args, **kwargs)


class Overflowing(Scaled):
    """The gradient of the mini-batches whose number is in `poison` overflows, though their loss is finite."""

    poison: Any = ()
    calls = 0

    def _update(self, loss: torch.Tensor, *rest: Any) -> Any:
        self.calls += 1
        return super()._update(loss * 1e36 if self.calls - 1 in self.poison else loss, *rest)


def build(cls: type, optimizer: Any = None, model: Any = "gpt2", **options: Any) -> Any:
    model = tiny.with_value_head(model)
    scaled = {"accelerator_kwargs": SCALED_ALONE} if issubclass(cls, Scaled) else {}
    optimizer = None if optimizer is None else optimizer(model.parameters())
    return cls(tiny.config(**{**scaled, **options}), model, None, tiny.tokenizer(), optimizer=optimizer)


def poisoned(cls: type, *poison: int) -> type:
    return type("Case", (cls,), {"poison": poison})


def scale_of(ours: PPOTrainer) -> float:
    return ours.accelerator.scaler.get_scale()


def trained(ours: PPOTrainer) -> PPOTrainer:
    for seed in (1, 2):
        ours.step(*tiny.batch(seed=seed))
    return ours


def assert_equal_training(one: PPOTrainer, two: PPOTrainer) -> None:
    torch.testing.assert_close(tiny.weights(one.model), tiny.weights(two.model))
    torch.testing.assert_close(one.optimizer.state_dict()["state"], two.optimizer.state_dict()["state"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("size", SIZES)
def test_the_scale_changes_no_number(size: str, optimizer: str) -> None:
    plain, scaled = (trained(build(cls, OPTIMIZERS[optimizer], **SIZES[size])) for cls in (PPOTrainer, Scaled))
    assert_equal_training(plain, scaled)
    assert scale_of(scaled) == SCALE


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_overflow_leaves_out_its_update_and_no_other(clip: float | None, optimizer: str) -> None:
    """As if the ratios of that mini-batch had been too large, which is known to leave no trace."""
    options = {"mini_batch_size": 2, "max_grad_norm": clip}
    ours = trained(build(poisoned(Overflowing, 2, 5), OPTIMIZERS[optimizer], **options))
    with pytest.warns(UserWarning, match="it is skipped"):
        other = trained(build(poisoned(Poisoned, 2, 5), OPTIMIZERS[optimizer], **options))
    assert scale_of(ours) == SCALE / 4
    assert_equal_training(ours, other)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_overflows_alone_keep_every_bit(clip: float | None, optimizer: str) -> None:
    options = {"mini_batch_size": 4, "gradient_accumulation_steps": 2, "max_grad_norm": clip, "batch_size": 8}
    ours = build(Overflowing, OPTIMIZERS[optimizer], **options)
    ours.step(*tiny.batch())
    before = weights_and_optimizer(ours)
    ours.poison = range(1000)
    ours.step(*tiny.batch(seed=2))
    assert changed(before, weights_and_optimizer(ours)) == []
    assert scale_of(ours) == SCALE / 2**4


def test_a_skipped_mini_batch_says_nothing_of_the_scale() -> None:
    ours = build(Scaled, mini_batch_size=2)
    ours.step(*tiny.batch())
    before = weights_and_optimizer(ours), ours.accelerator.scaler.state_dict()
    ours.config.ratio_threshold = 0.5
    with pytest.warns(UserWarning, match="it is skipped"):
        stats = ours.step(*tiny.batch(seed=2))
    assert stats["ppo/policy/skipped"] == 16
    assert changed(before[0], weights_and_optimizer(ours)) == []
    assert ours.accelerator.scaler.state_dict() == before[1]


@pytest.mark.filterwarnings("ignore:.*it is skipped")
@pytest.mark.parametrize("size", SIZES)
def test_skipped_mini_batches_under_a_scale(size: str) -> None:
    class Case(Poisoned, Scaled):
        poison = (0, 3)

    plain, scaled = (trained(build(cls, **SIZES[size])) for cls in (poisoned(Poisoned, 0, 3), Case))
    assert_equal_training(plain, scaled)


def test_the_norm_is_that_of_unscaled_gradients() -> None:
    norms = []
    for limit in (1e9, 0.05):
        ours = build(Scaled, OPTIMIZERS["sgd"], max_grad_norm=limit)

        def measure(optimizer: Any, *_: Any) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms[-1].append(float(torch.nn.utils.get_total_norm(gradients)))

        norms.append([])
        ours.optimizer.optimizer.register_step_pre_hook(measure)
        ours.step(*tiny.batch())
    assert all(0.05 < norm < 100 for norm in norms[0])
    assert norms[1] == pytest.approx([0.05] * 8, rel=1e-3)


class Small(PPOTrainer):
    """Advantages so small that their gradients vanish in float16, whose least number is 6e-8."""

    def compute_advantages(self, *arguments: torch.Tensor) -> Any:
        values, advantages, returns = super().compute_advantages(*arguments)
        return values, advantages * 1e-4, returns


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_small_gradients_survive_float16(name: str) -> None:
    moves = []
    # the float32 one first: a second trainer takes its precision from no one else
    for cls in (Small, type("Case", (Small, Scaled), {})):
        options = {"ppo_epochs": 1, "vf_coef": 0.0, "mini_batch_size": 8}
        if issubclass(cls, Scaled):
            options["accelerator_kwargs"] = IN_FLOAT16
        ours = build(cls, lambda parameters: torch.optim.SGD(parameters, lr=1e3), name, **options)
        precisions: set[torch.dtype] = set()
        decoder = ours.model.pretrained_model.get_decoder()
        layer = next(module for module in decoder.modules() if isinstance(module, torch.nn.ModuleList))[0]
        layer.mlp.register_forward_hook(lambda _m, _i, output, seen=precisions: seen.add(output.dtype))
        before = tiny.weights(ours.model)
        ours.step(*tiny.batch())
        assert precisions == {torch.float16 if isinstance(ours, Scaled) else torch.float32}
        moves.append({key: weight - before[key] for key, weight in tiny.weights(ours.model).items()})
    for key, exact in moves[0].items():
        assert float((moves[1][key] - exact).norm()) <= 0.02 * float(exact.norm()), key  # float16 has 10 bits


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_sampling_rollout_and_update_agree_in_float16(name: str) -> None:
    ours = build(Scaled, None, name, accelerator_kwargs=IN_FLOAT16)
    queries, _, scores = tiny.batch()
    before = tiny.weights(ours.model)
    for step in range(2):
        responses = ours.generate(queries, return_prompt=False, do_sample=True, top_k=0, max_new_tokens=8)
        stats = ours.step(queries, responses, scores)
        # with gradients, T5's attention runs in another kernel, as its bias is trained; float16 has steps of 1e-3
        assert stats["ppo/policy/ratio_error"] == pytest.approx(0, abs=1e-3 if name == "t5" else 1e-6)
        assert step or stats["objective/kl"] == pytest.approx(0, abs=1e-6)
    moved = [float((weight - before[key]).abs().max()) for key, weight in tiny.weights(ours.model).items()]
    assert max(moved) > 1e-3  # learning_rate
    assert {weight.dtype for weight in ours.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mode", [IN_FLOAT16, SCALED_ALONE], ids=["float16", "float32"])
def test_a_resumed_run_goes_on_with_its_scale(mode: dict[str, Any], tmp_path: Path) -> None:
    def started() -> Any:
        ours = build(Overflowing, mini_batch_size=4, accelerator_kwargs=mode)
        ours.accelerator.scaler.set_growth_interval(4)
        return ours

    whole = started()
    whole.poison = (1, 2)
    whole.step(*tiny.batch())
    state = whole.accelerator.scaler.state_dict()
    assert state["scale"] < SCALE
    assert state["_growth_tracker"] > 0
    whole.save_state(tmp_path)
    whole.step(*tiny.batch(seed=2))
    behind = everything(whole)
    resumed = started()
    assert resumed.load_state(tmp_path) == 1
    assert resumed.accelerator.scaler.state_dict() == state
    resumed.step(*tiny.batch(seed=2))
    assert whole.accelerator.scaler.state_dict() == resumed.accelerator.scaler.state_dict()
    assert changed(behind, everything(resumed)) == []


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("clip", [None, 0.5])
def test_an_update_that_failed_says_nothing_to_the_next_one(clip: float | None, optimizer: str) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    seen = []
    for fails in (True, False):
        ours: Any = trained(build(Scaled, OPTIMIZERS[optimizer], max_grad_norm=clip))
        if fails:
            hook = ours.optimizer.optimizer.register_step_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                ours.step(*tiny.batch(seed=3))
            hook.remove()
        np.random.seed(3)  # the order of the mini-batches
        ours.step(*tiny.batch(seed=3))
        seen.append((weights_and_optimizer(ours), ours.accelerator.scaler.state_dict()))
    assert changed(seen[0][0], seen[1][0]) == []
    assert seen[0][1] == seen[1][1]


def test_updates_that_are_left_out_for_ever_are_told_once() -> None:
    class Broken(Scaled):
        def _update(self, loss: torch.Tensor, *rest: Any) -> Any:
            return super()._update(loss + (loss - loss).sqrt(), *rest)  # a slope of infinity less infinity

    ours = build(Broken, mini_batch_size=2)  # 16 updates, each halves the scale
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.step(*tiny.batch())
    assert scale_of(ours) == 1
    with pytest.warns(UserWarning, match=r"the loss scale fell to 1\.52588e-05: .* nothing is learnt"):
        ours.step(*tiny.batch())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the responses differ")
        ours.step(*tiny.batch())


def test_under_a_scaler_the_host_decides() -> None:
    ours = build(Scaled)
    with mock.patch.object(type(ours.accelerator), "device", torch.device("cuda")):
        assert (
            type(make_updater(ours._processes, ours.model, ours.optimizer, ours.model_params, ours.config)) is Updater
        )
