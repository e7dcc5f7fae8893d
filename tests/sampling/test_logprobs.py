"""Log-probs that come with the samples: those of `batched_forward_pass`, for every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import tiny

KINDS = ["gpt2", "llama", "t5", "bart", "lora"]
SETTINGS = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 30}


def trainer_of(kind: str, **options: Any):
    if kind != "lora":
        return tiny.trainer(kind, **options)
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["c_attn"])
    return tiny.trainer(tiny.with_value_head("gpt2", peft_config=settings), **options)


def of_the_step(trainer, samples) -> list[torch.Tensor]:
    """What a forward pass over the samples gives for each response token that the model predicts."""
    inputs = trainer.prepare_model_inputs(samples.queries, samples.responses)
    with torch.no_grad():
        logprobs, _, _, mask = trainer.batched_forward_pass(trainer.model, samples.queries, samples.responses, inputs)
    return [row[counted.bool()] for row, counted in zip(logprobs, mask, strict=True)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_a_forward_pass(kind: str, temperature: float) -> None:
    trainer, (queries, *_) = trainer_of(kind, temperature=temperature), tiny.batch()
    torch.manual_seed(3)
    samples = trainer.sample(queries, 3, temperature=temperature, **SETTINGS)
    assert len({len(response) for response in samples.responses}) > 3, "rows ended at different places"
    for found, expected in zip(samples.logprobs, of_the_step(trainer, samples), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_truncation_does_not_change_them() -> None:
    """They are log-probs of the policy, not of what `top_k`, `top_p` and penalties leave of it."""
    trainer, (queries, *_) = tiny.trainer(), tiny.batch()
    samples = trainer.sample(queries, 2, **(SETTINGS | {"top_k": 5, "top_p": 0.8, "repetition_penalty": 1.3}))
    for found, expected in zip(samples.logprobs, of_the_step(trainer, samples), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_greedy_answers_have_those_at_temperature_1() -> None:
    trainer, (queries, *_) = tiny.trainer(), tiny.batch()
    samples = trainer.sample(queries, do_sample=False, temperature=0.3, max_new_tokens=9)
    for found, expected in zip(samples.logprobs, of_the_step(trainer, samples), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_step_that_is_given_them_is_the_same_step(kind: str) -> None:
    """The first ratio is 1, and the policy runs no forward pass before the updates for the log-probs' sake."""
    (queries, *_), stats = tiny.batch(), []
    for given in (False, True):
        trainer = tiny.trainer(kind)
        torch.manual_seed(5)
        samples = trainer.sample(queries, **(SETTINGS | {"max_new_tokens": 8}))
        extra = {"old_logprobs": samples.logprobs} if given else {}
        scores = [float(len(response)) for response in samples.responses]
        stats.append(trainer.step(samples.queries, samples.responses, scores, **extra))
    for key in ("ppo/loss/total", "ppo/policy/approxkl", "objective/kl", "ppo/returns/mean"):
        assert stats[0][key] == pytest.approx(stats[1][key], abs=2e-5)


def test_generate_returns_them_beside_the_responses() -> None:
    trainer, (queries, *_) = tiny.trainer(), tiny.batch()
    torch.manual_seed(1)
    responses, logprobs = trainer.generate(queries, return_prompt=False, return_logprobs=True, **SETTINGS)
    torch.manual_seed(1)
    samples = trainer.sample(queries, **SETTINGS)
    assert all(torch.equal(a, b) for a, b in zip(responses, samples.responses, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(logprobs, samples.logprobs, strict=True))


def test_sampled_without_them() -> None:
    assert tiny.trainer().sample([torch.tensor([5, 6])], return_logprobs=False, max_new_tokens=2).logprobs is None
