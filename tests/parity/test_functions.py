"""The pure functions of release 0.7.11, under their legacy names, on the recorded batches."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import trl_step
from tests.parity.cases import SHAPES
from tests.parity.recording import FunctionCall, function_calls
from tests.parity.runner import Library, build_model, build_tokenizer
from trl_step import core
from trl_step.trainer import AdaptiveKLController, FixedKLController, RunningMoments

CORE = [
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "whiten",
    "entropy_from_logits",
    "logprobs_from_logits",
    "clip_by_value",
]


def _expect(call: FunctionCall, **actual: Any) -> None:
    for name, recorded in call.outputs.items():
        torch.testing.assert_close(
            torch.as_tensor(actual[name], dtype=recorded.dtype),
            recorded,
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, name=name: f"{call.function}{call.options}, {name}: {text}",
        )


@pytest.mark.parametrize("function", CORE)
def test_core_function(function: str) -> None:
    for call in function_calls(function):
        result = getattr(core, function)(**call.inputs, **call.options)
        _expect(call, **dict.fromkeys(call.outputs, result))


def test_adaptive_controller() -> None:
    (call,) = function_calls("AdaptiveKLController")
    options = dict(call.options)
    n_steps = options.pop("n_steps")
    _expect(call, values=_controlled(AdaptiveKLController(**options), call, n_steps))


def test_fixed_controller() -> None:
    (call,) = function_calls("FixedKLController")
    controller = FixedKLController(kl_coef=call.options["kl_coef"])
    _expect(call, values=_controlled(controller, call, call.options["n_steps"]))


def _controlled(controller: Any, call: FunctionCall, n_steps: int) -> list[float]:
    series = []
    for current in call.inputs["currents"].tolist():
        controller.update(current, n_steps)
        series.append(controller.value)
    return series


def test_running_moments() -> None:
    for call in function_calls("RunningMoments"):
        moments = RunningMoments(None)
        rows = []
        for batch in call.inputs["batches"]:
            returned = moments.update(batch)
            rows.append([*returned, *(float(getattr(moments, name)) for name in ("mean", "std", "var", "count"))])
        columns = torch.tensor(rows, dtype=torch.float64).T
        _expect(call, **dict(zip(call.outputs, columns, strict=True)))


@pytest.mark.filterwarnings("ignore")
class TestTrainerMethods:
    """The methods that scripts override or call, on a trainer with `exact_v07`."""

    def test_compute_rewards(self) -> None:
        for call in function_calls("compute_rewards"):
            trainer = _trainer(kl_penalty=call.options["kl_penalty"], init_kl_coef=call.options["kl_coef"])
            rewards, non_score_rewards, kls = trainer.compute_rewards(*call.inputs.values())
            _expect(call, rewards=rewards, non_score_rewards=non_score_rewards, kls=kls)

    def test_compute_advantages(self) -> None:
        for call in function_calls("compute_advantages"):
            values, advantages, returns = _trainer(**call.options).compute_advantages(*call.inputs.values())
            _expect(call, values=values, advantages=advantages, returns=returns)

    def test_loss(self) -> None:
        for call in function_calls("loss"):
            if call.options["ratio_threshold"] > 1:
                _check_loss(call)

    def test_loss_above_the_ratio_threshold(self) -> None:
        """The release multiplies both losses of such a mini-batch by 0."""
        for call in function_calls("loss"):
            if call.options["ratio_threshold"] < 1:
                _check_loss(call)


def _check_loss(call: FunctionCall) -> None:
    inputs = dict(call.inputs)
    for name in ("vpreds", "logprobs"):
        inputs[name].requires_grad_()
    policy_loss, value_loss, stats = _trainer(**call.options).loss(*inputs.values())
    (policy_loss + value_loss).backward()
    _expect(
        call,
        policy_loss=policy_loss.detach(),
        value_loss=value_loss.detach(),
        grad_logprobs=inputs["logprobs"].grad,
        grad_vpreds=inputs["vpreds"].grad,
        **{f"stats:{key}": value for key, value in stats.items()},
    )


@functools.cache
def _trainer(**options: Any) -> Any:
    library = Library(trl_step)
    config = trl_step.PPOConfig(exact_v07=True, batch_size=4, mini_batch_size=4, **options)
    return trl_step.PPOTrainer(config, build_model(library, SHAPES["gpt2"]), None, build_tokenizer("right"))
