"""What the settings of the algorithm and their inputs may not do: act silently wrong, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tests.tiny import config as tiny_config
from tests.tiny import gpt2, t5, tokenizer, weights, with_value_head
from tests.trainer.plain_step import samples
from trl_step import PPOTrainer
from trl_step.algorithms.advantages.group import grpo_advantages
from trl_step.extras import BestOfNSampler


class OwnLoss(PPOTrainer):
    def policy_losses(
        self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        return -advantages * torch.exp(logprobs - old_logprobs)


class SaysUncoupled(PPOTrainer):
    couples_tokens = False


def build(model: Any = None, cls: type = PPOTrainer, value_model: Any = None, **options: Any) -> Any:
    settings = tiny_config(**{"advantage_estimator": "grpo", **options})
    return cls(settings, gpt2() if model is None else model, None, tokenizer(), value_model=value_model)


def step(ours: Any, **given: Any) -> dict[str, Any]:
    batch = samples()
    return ours.step(batch.queries, batch.responses, batch.scores, **given)


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e18, 1e25, 1e37])
def test_the_deviation_of_large_scores_does_not_overflow(scale: float) -> None:
    """Beyond 1e19 the square of a score is no float32; the advantages were 0."""
    totals, groups = torch.tensor([1.0, -0.5, 0.25]), torch.zeros(3, dtype=torch.int64)
    expected = (totals - totals.mean()) / totals.std()
    rtol = 1e-4 / (scale * float(totals.std()))  # the epsilon
    torch.testing.assert_close(grpo_advantages(scale * totals, groups), expected, rtol=max(rtol, 1e-6), atol=1e-6)


@pytest.mark.parametrize("group_scale", ["std", "batch", "none"])
def test_scores_whose_advantages_are_not_finite_are_refused(group_scale: str) -> None:
    ours, batch = build(group_scale=group_scale), samples()
    before = weights(ours.model)
    with pytest.raises(ValueError, match=r"sample \d: its advantages are too large"):
        ours.step(batch.queries, batch.responses, [3e38, 0.0, -3e38, 0.0, 0.0, 3e38, 0.0, 0.0])
    assert all(torch.equal(before[name], value) for name, value in weights(ours.model).items())


def test_values_that_nothing_needs_are_named() -> None:
    given = [torch.zeros(len(response)) for response in samples().responses]
    with pytest.warns(UserWarning, match="values are ignored: advantage_estimator is 'grpo'"):
        step(build(), values=given)


def test_a_log_prob_that_is_not_finite_is_named_before_an_own_loss_is_tried() -> None:
    old_logprobs = [torch.full((len(response),), -4.0) for response in samples().responses]
    old_logprobs[3][0] = torch.nan
    with pytest.raises(ValueError, match="sample 3: the logprobs of its response are not finite"):
        step(build(cls=OwnLoss), old_logprobs=old_logprobs)


def test_all_processes_refuse_a_loss_that_one_of_them_finds_wrong() -> None:
    """The others would wait for it forever."""
    ours, told = build(cls=OwnLoss), []
    share = ours._processes.raise_together
    wrong = ValueError("policy_losses must return one loss per token")
    with (
        mock.patch("trl_step.trainer.ppo_trainer.check_policy_losses", side_effect=wrong),
        mock.patch.object(ours._processes, "raise_together", lambda error: (told.append(error), share(error))),
        pytest.raises(ValueError, match="policy_losses must return one loss per token"),
    ):
        step(ours)
    assert told[-1] is wrong


def test_couples_tokens_is_about_an_override() -> None:
    """Without one, `config.policy_loss` decides: the gradient of gspo would be wrong."""
    assert build(cls=SaysUncoupled, policy_loss="gspo", cliprange=0.03)._couples_tokens
    assert not build(cls=SaysUncoupled)._couples_tokens


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_policy_of_which_only_a_useless_value_head_trains_is_refused() -> None:
    """The backward pass of the first step had nothing to differentiate."""
    model = with_value_head("gpt2")
    model.pretrained_model.requires_grad_(False)
    with pytest.raises(ValueError, match=r"nothing of the policy trains.*requires_grad_\(True\)"):
        build(model)


def test_a_plain_adapter_that_was_loaded_frozen_is_refused(tmp_path: Path) -> None:
    get_peft_model(gpt2(), LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"nothing of the policy trains.*is_trainable=True"):
        build(PeftModel.from_pretrained(gpt2(), tmp_path))


@pytest.mark.parametrize(("policy", "critic"), [(t5, "llama"), (gpt2, "t5")])
def test_a_critic_of_the_other_kind_is_refused(policy: Any, critic: str) -> None:
    with pytest.raises(ValueError, match=r"value_model is (a decoder alone|an encoder-decoder) and model is"):
        build(policy(), value_model=with_value_head(critic, seed=1), advantage_estimator="gae")


def test_best_of_n_takes_a_policy_with_a_critic() -> None:
    ours = build(value_model=with_value_head("llama", seed=1), advantage_estimator="gae")
    sampler = BestOfNSampler(ours.model, tokenizer(), lambda texts: [len(text) for text in texts], lambda: 3)
    assert len(sampler.generate(samples().queries[:2], do_sample=True)) == 2
