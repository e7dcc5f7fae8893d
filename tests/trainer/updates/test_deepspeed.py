"""DeepSpeed ZeRO-2 and ZeRO-3 on two CPU processes (gloo): statistics and weights are those of one process.

Slow, as two processes are started. Runs where deepspeed is installed; it is not among the packages of the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.regressions.two_processes import CASES, Case, alone, build, launch
from tests.tiny import batch, config, trainer, weights
from tests.trainer.processes.sharded_processes import DEEPSPEED_CASES, GREEDY, SCRIPT
from trl_step import AutoModelForCausalLMWithValueHead
from trl_step.import_utils import is_deepspeed_available
from trl_step.trainer.updates import deepspeed

needs_deepspeed = pytest.mark.skipif(not is_deepspeed_available(), reason="pip install deepspeed")


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_two_processes_equal_one(stage: int, tmp_path: Path) -> None:
    launch(tmp_path, f"zero{stage}", SCRIPT)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)]
    with mock.patch.dict(CASES, DEEPSPEED_CASES):
        expected = {name: alone(name) for name in DEEPSPEED_CASES}
    for name, truth in expected.items():
        for seen in both:
            assert seen[name]["wrapped"]["model"] == "DeepSpeedEngine"
            for step, (own, right) in enumerate(zip(seen[name]["steps"], truth["steps"], strict=True)):
                for key, value in right.items():
                    assert own[key] == pytest.approx(value, rel=1e-5, abs=1e-5), f"{name}: {key} of step {step}"
            for parameter, value in truth["weights"].items():
                torch.testing.assert_close(seen[name]["weights"][parameter], value, rtol=0, atol=1e-5, msg=parameter)
    _check_sampling([seen["sampled"] for seen in both], stage)
    saved = both[0]["own optimizer"]
    found = weights(AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path / "saved"))
    assert found.keys() == saved["weights"].keys()
    assert all(torch.equal(found[name], value) for name, value in saved["weights"].items())
    assert saved["clipping"] == 0.5


def _check_sampling(both: list[dict[str, Any]], stage: int) -> None:
    ours = build(Case())
    for rank, seen in enumerate(both):
        expected = ours.generate(batch(5)[0][: 2 + 3 * rank], **GREEDY)
        assert seen["responses"] == [response.tolist() for response in expected]
        assert seen["fetches"] == 0, "weights are gathered once per call"
        assert seen["told"].startswith("create_reference_model cannot copy a model whose weights") == (stage == 3)


def test_what_deepspeed_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="value_warmup_steps=3: DeepSpeed's engine steps on all gradients"):
        deepspeed.configure(trainer("gpt2").accelerator, config(value_warmup_steps=3))
    ours = trainer("gpt2", gradient_accumulation_steps=2, forward_tokens=64)
    with pytest.raises(ValueError, match="forward_tokens=64: DeepSpeed joins the gradients of a mini-batch's parts"):
        deepspeed.configure(ours.accelerator, ours.config)
    deepspeed.check_skip(ours.accelerator, ours.config)
    monkeypatch.setattr(deepspeed, "uses_deepspeed", lambda accelerator: True)
    with pytest.raises(RuntimeError, match="out of an update of gradient_accumulation_steps=2: set that to 1"):
        deepspeed.check_skip(ours.accelerator, ours.config)


def test_a_reference_that_shares_parameters_gets_its_own() -> None:
    ours = build(Case(shared=1))
    apart = deepspeed.unshared(ours.ref_model, ours.model)
    shared = {id(parameter) for parameter in ours.model.parameters()}
    assert any(id(parameter) in shared for parameter in ours.ref_model.parameters())
    assert not any(id(parameter) in shared for parameter in apart.parameters())
    assert deepspeed.unshared(apart, ours.model) is apart
