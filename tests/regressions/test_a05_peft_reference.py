"""Row A5, the trainer's part: what the KL of a PEFT model is measured against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.tiny import CAUSAL, batch, gpt2, trainer, with_value_head
from trl_step import AutoModelForCausalLMWithValueHead

pytestmark = pytest.mark.filterwarnings("ignore:.*holds no value head")
LORA = {"r": 4, "task_type": "CAUSAL_LM", "fan_in_fan_out": True}


def base_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    gpt2().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained_adapter(tmp_path: Path) -> Path:
    """A folder with an adapter that training has moved, over a base model in another folder."""
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        str(base_folder(tmp_path)), peft_config=LoraConfig(**LORA)
    )
    ours = trainer(model, learning_rate=0.1)
    for step in range(2):
        ours.step(*batch(seed=step))
    ours.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def response_logprobs(model: Any, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> list[torch.Tensor]:
    """By hand, one sample at a time."""
    model.eval()
    found = []
    with torch.no_grad():
        for query, response in zip(queries, responses, strict=True):
            logits = model(torch.cat((query, response))[None]).logits[0, len(query) - 1 : -1]
            found.append(torch.log_softmax(logits, -1).gather(1, response[:, None])[:, 0])
    return found


def of_tokens(stats: dict[str, Any], key: str, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> list:
    return [
        stats[key][i, len(q) - 1 : len(q) - 1 + len(r)] for i, (q, r) in enumerate(zip(queries, responses, strict=True))
    ]


def test_a_passed_reference_is_used() -> None:
    reference = with_value_head("gpt2", seed=9)
    queries, responses, scores = batch()
    expected = response_logprobs(reference.pretrained_model, queries, responses)
    ours = trainer(with_value_head("gpt2", peft_config=LoraConfig(**LORA)), ref_model=reference)
    stats = ours.step(queries, responses, scores)
    torch.testing.assert_close(of_tokens(stats, "objective/ref_logprobs", queries, responses), expected)
    assert stats["objective/kl"] != 0


def test_a_passed_copy_of_the_base_gives_a_kl_of_0_at_first() -> None:
    ours = trainer(with_value_head("gpt2", peft_config=LoraConfig(**LORA)), ref_model=with_value_head("gpt2"))
    assert ours.step(*batch())["objective/kl"] == 0
    assert ours.step(*batch())["objective/kl"] != 0


def test_a_trained_adapter_is_its_own_frozen_reference(tmp_path: Path) -> None:
    folder = trained_adapter(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), is_trainable=True)
    queries, responses, scores = batch()
    at_start = response_logprobs(model.pretrained_model, queries, responses)
    ours = trainer(model, learning_rate=1e-2)
    first = ours.step(queries, responses, scores)
    assert first["objective/kl"] == 0
    second = ours.step(queries, responses, scores)
    assert second["objective/kl"] != 0
    for stats in (first, second):  # training moves the policy and leaves the reference where it was
        torch.testing.assert_close(of_tokens(stats, "objective/ref_logprobs", queries, responses), at_start)


def test_a_reference_passed_beside_a_trained_adapter_is_used(tmp_path: Path) -> None:
    folder = trained_adapter(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), is_trainable=True)
    base = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base"))
    queries, responses, scores = batch()
    expected = response_logprobs(base.pretrained_model, queries, responses)
    stats = trainer(model, ref_model=base).step(queries, responses, scores)
    torch.testing.assert_close(of_tokens(stats, "objective/ref_logprobs", queries, responses), expected)
    assert stats["objective/kl"] != 0


@pytest.mark.parametrize("name", CAUSAL)
def test_a_fresh_adapter_is_measured_against_the_base(name: str) -> None:
    torch.manual_seed(0)
    targets = {} if name != "gpt2" else {"fan_in_fan_out": True}
    model = with_value_head(name, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM", **targets))
    ours = trainer(model, learning_rate=1e-2)
    queries, responses, scores = batch()
    with model.pretrained_model.disable_adapter():
        expected = response_logprobs(model.pretrained_model, queries, responses)
    assert ours.step(queries, responses, scores)["objective/kl"] == 0
    stats = ours.step(queries, responses, scores)
    torch.testing.assert_close(of_tokens(stats, "objective/ref_logprobs", queries, responses), expected)
    assert stats["objective/kl"] != 0


def test_only_the_adapter_and_the_value_head_are_trained(tmp_path: Path) -> None:
    folder = trained_adapter(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), is_trainable=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer(model, learning_rate=1e-2).step(*batch())
    moved = {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert moved
    assert all("lora_" in name or name.startswith("v_head.") for name in moved)
    assert not any("reference" in name for name in moved)


def test_the_old_numbers_are_there_for_a_port(tmp_path: Path) -> None:
    """Release 0.7.11 ignores a passed reference, and measures a trained adapter against the bare base model."""
    folder = trained_adapter(tmp_path)
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(folder), is_trainable=True)
    base = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base"))
    queries, responses, scores = batch()
    expected = response_logprobs(base.pretrained_model, queries, responses)
    other = with_value_head("gpt2", seed=9)
    stats = trainer(model, ref_model=other, exact_v07=True).step(queries, responses, scores)
    torch.testing.assert_close(of_tokens(stats, "objective/ref_logprobs", queries, responses), expected)
