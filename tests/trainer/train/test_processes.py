"""RLOO and PPO with `train()` on two CPU processes (gloo), DDP and FSDP2: the numbers of one process on all samples.

Slow, as two processes are started, and each imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.once import started_once
from tests.regressions.two_processes import launch
from tests.trainer.train.loop_processes import MAKERS, SCRIPT, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    name = request.param
    folder = started_once(tmp_path_factory, f"loop-{name}", lambda folder: launch(folder, name, SCRIPT))
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return [{**seen, "configuration": name} for seen in found]


@pytest.mark.parametrize("kind", MAKERS)
def test_two_processes_equal_one(both: list[dict[str, Any]], kind: str, tmp_path: Path) -> None:
    truth = run(kind, tmp_path, 8, {"rloo": 16, "ppo": 8}[kind])
    for seen in both:
        wrapped = seen[kind]["wrapped"]
        assert wrapped.startswith("FSDP" if seen["configuration"] == "fsdp2" else "DistributedDataParallel")
        assert seen[kind]["processes"] == 2
        for own, right in zip(seen[kind]["log"], truth["log"], strict=True):
            assert own == pytest.approx(right, rel=1e-4, abs=1e-5)
        for name, value in truth["weights"].items():
            if not name.endswith("attn.c_attn.bias"):  # the gradient of a key's bias is rounding, which Adam enlarges
                torch.testing.assert_close(seen[kind]["weights"][name], value, rtol=0, atol=2e-4, msg=name)


def test_a_resumed_run_goes_on(both: list[dict[str, Any]]) -> None:
    assert [seen["resumed"] for seen in both] == [True, True]


def test_all_processes_hear_of_a_failed_reward(both: list[dict[str, Any]]) -> None:
    assert "reward_model gave answer 0 the score nan; its prompt is 'w" in both[0]["failed"]
    assert "process 0: ValueError: reward_model gave answer 0" in both[1]["failed"]
