"""A device without float64, such as Apple's MPS: a step works there, and computes the same numbers.

The CPU plays such a device. Tensors that the package moves "to the host" are marked, and so is what is computed from
them; float64 on anything else raises, as it does on MPS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests import tiny_diffusion
from tests.models.tiny_models import lora
from tests.tiny import batch, trainer, with_value_head
from trl_step import core
from trl_step.environment.rewards import is_finite


class WithoutFloat64(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs or {})) if isinstance(each, torch.Tensor)]
        result = function(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor)]
        exact = [each for each in made if each.dtype == torch.float64]
        is_new = not given or function is torch.ops.aten.lift_fresh.default  # made from numbers, so on the host
        if is_new or any(getattr(each, "on_host", False) for each in given):
            for each in exact:
                each.on_host = True
        elif exact or any(each.dtype == torch.float64 for each in given):
            raise TypeError(f"{function}: this device has no float64")
        return result


@contextmanager
def device_without_float64(patch: pytest.MonkeyPatch) -> Iterator[None]:
    def to_host(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.on_host = True
        return tensor

    patch.setattr(core, "WITHOUT_FLOAT64", ("mps", "cpu"))
    patch.setattr(core, "to_host", to_host)
    with WithoutFloat64():
        yield


OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "t5": {},
    "llama": {"use_score_scaling": True, "use_score_norm": True, "whiten_rewards": True},
    "lora": {"early_stopping": True, "kl_penalty": "full", "ppo_epochs": 2},
}


def run(name: str, token_scores: bool) -> list[float]:
    model = with_value_head("gpt2", peft_config=lora()) if name == "lora" else name
    ours = trainer(model, **OPTIONS[name])
    queries, responses, scores = batch()
    given: Any = scores
    if token_scores:
        given = [torch.full((len(response),), score) for response, score in zip(responses, scores, strict=True)]
    elif name == "llama":
        given = np.array(scores)
    ours.generate(queries, max_new_tokens=3)
    stats = ours.step(queries, responses, given)
    ours.log_stats(stats, {"query": [""] * len(scores), "response": [""] * len(scores)}, given)
    return [value for key, value in stats.items() if isinstance(value, float) and not key.startswith("time/")]


@pytest.mark.parametrize("token_scores", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_on_a_device_without_float64(name: str, token_scores: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(name, token_scores)
    with device_without_float64(monkeypatch):
        got = run(name, token_scores)
    assert got == want


def test_rewards_of_pictures_on_a_device_without_float64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tiny_diffusion.trainer(tmp_path, log_with=None)
    with device_without_float64(monkeypatch):
        ours.train(epochs=1)
    assert ours.num_train_timesteps


def test_the_device_of_these_tests_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.ones(2)
    host = torch.ones(2)
    with device_without_float64(monkeypatch):
        for use in (numbers.double, lambda: numbers.to(torch.float64), lambda: numbers + host.double()):
            with pytest.raises(TypeError, match="has no float64"):
                use()
        assert core.in_float64(numbers).sum().dtype == torch.float64
        assert is_finite(numbers)


def test_float64_stays_on_a_device_that_has_it() -> None:
    numbers = torch.ones(2)
    assert core.in_float64(numbers).dtype == torch.float64
    meta = core.in_float64(numbers.to("meta"))
    assert meta.device.type == "meta"
