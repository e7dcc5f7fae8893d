"""A loss of the user's own: on the fused path, through full logits, and what is refused before anything moves."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import gpt2, tokenizer, weights, with_value_head
from tests.trainer.plain_step import (
    ask,
    both,
    counted,
    estimate,
    known,
    largest_difference,
    moved_a_little,
    plain_loss,
    samples,
)
from trl_step import PPOConfig, PPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:.*needs no values|.*hardly ever does")
GRPO: dict[str, Any] = {"advantage_estimator": "grpo"}


class SoftPenalty(PPOTrainer):
    """-A r + (log r)² / 2, with the masks ignored: they are the library's business."""

    def policy_losses(self, logprobs: Any, old_logprobs: Any, advantages: Any, mask: Any) -> torch.Tensor:
        difference = logprobs - old_logprobs
        return -advantages * torch.exp(difference) + 0.5 * difference**2


class LengthFair(PPOTrainer):
    """-A s, with the geometric mean s of a sample's ratios, over the length."""

    couples_tokens = True

    def policy_losses(self, logprobs: Any, old_logprobs: Any, advantages: Any, mask: Any) -> torch.Tensor:
        length = mask.sum(dim=1, keepdim=True)
        ratio = torch.exp(((logprobs - old_logprobs) * mask).sum(dim=1, keepdim=True) / length)
        return -advantages * ratio / length


def plain(kind: type[PPOTrainer]) -> Any:
    """The loss of these trainers, in loops over samples and tokens."""

    def total(model: Any, config: PPOConfig, batch: Any, found: Any, kl_coef: float) -> torch.Tensor:
        advantages = estimate(config, batch, found, kl_coef).advantages
        number = sum(len(counted(mask)) for mask in found.masks)
        result = torch.zeros(())
        for i, (query, response) in enumerate(zip(batch.queries, batch.responses, strict=True)):
            said, places = ask(model, query, response, config.temperature), counted(found.masks[i])
            differences = [said.logprobs[t] - found.old[i][t] for t in places]
            for k, difference in enumerate(differences):
                a, n = advantages[i][k], len(places)
                if kind is SoftPenalty:
                    result = result + (-a * torch.exp(difference) + difference**2 / 2) / number
                else:
                    result = result - a * torch.exp(sum(differences) / n) / n / number
        return result

    return total


@pytest.mark.parametrize("options", [{}, {"forward_tokens": 16}, {"padding_side": "left"}], ids=str)
@pytest.mark.parametrize("kind", [SoftPenalty, LengthFair])
def test_one_step_is_the_plain_loop(kind: type[PPOTrainer], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = moved_a_little(gpt2(), by=0.1)
    found = both(model, moved_a_little(model), trainer_class=kind, loss=plain(kind), **GRPO, **options)
    assert largest_difference(found) < 1e-4
    assert "ppo/policy/clipfrac" not in found.stats
    assert found.stats["ppo/loss/policy"] != 0


@pytest.mark.parametrize("kind", [SoftPenalty, LengthFair])
def test_mini_batches_accumulate_to_the_whole(kind: type[PPOTrainer]) -> None:
    torch.manual_seed(0)
    model = moved_a_little(gpt2(), by=0.1)
    options = {"mini_batch_size": 2, "gradient_accumulation_steps": 4, "loss_normalization": "tokens"}
    found = both(model, moved_a_little(model), trainer_class=kind, loss=plain(kind), **GRPO, **options)
    assert largest_difference(found) < 1e-4


# --- what super() returns ----------------------------------------------------------------------------------------


class Super(PPOTrainer):
    """The configured loss by another way."""

    def policy_losses(self, logprobs: Any, old_logprobs: Any, advantages: Any, mask: Any) -> torch.Tensor:
        return super().policy_losses(logprobs, old_logprobs, advantages, mask)


CONFIGURED: dict[str, dict[str, Any]] = {
    "clip": {"cliprange": 0.05, "cliprange_high": 0.1, "dual_clip": 1.1},
    "gspo": {"cliprange": 0.03, "cliprange_high": 0.05},
    "sequence_clip": {},
    "cispo": {"cispo_bound": 1.1},
    "reinforce": {},
    "sapo": {"sapo_temperatures": (1.0, 3.0)},
    "dppo": {"dppo_delta": 0.001},
}


@pytest.mark.parametrize("give", [("old_logprobs",), ("old_logprobs", "sampling_logprobs")], ids=["", "with sampling"])
@pytest.mark.parametrize("name", CONFIGURED)
def test_super_is_the_configured_loss(name: str, give: tuple[str, ...]) -> None:
    """Those that couple tokens do so without being told. The plain loop takes the sampler's log-probs for dppo."""
    if name == "dppo" and len(give) == 1:
        pytest.skip("the plain loop always measures the move from the sampler")
    torch.manual_seed(0)
    model = moved_a_little(gpt2(), by=0.1)
    settings = {**GRPO, "policy_loss": name, **CONFIGURED[name]}
    found = both(model, moved_a_little(model), trainer_class=Super, give=give, **settings)
    assert largest_difference(found) < 1e-4


def test_a_method_of_one_trainer() -> None:
    """A script may replace the method on the object."""
    batch, model = samples(), gpt2()
    seen = []
    ours = PPOTrainer(PPOConfig(batch_size=8, mini_batch_size=8, ppo_epochs=1, **GRPO), model, None, tokenizer())

    def own(logprobs: Any, old_logprobs: Any, advantages: Any, mask: Any) -> torch.Tensor:
        seen.append(logprobs.shape)
        return -advantages * torch.exp(logprobs - old_logprobs)

    ours.policy_losses = own  # type: ignore[method-assign]
    ours.step(batch.queries, batch.responses, batch.scores)
    assert seen


# --- what is refused ---------------------------------------------------------------------------------------------


def undeclared(logprobs: Any, old: Any, advantages: Any, mask: Any) -> Any:
    difference = logprobs - old
    return -advantages * torch.exp((difference * mask).sum(dim=1, keepdim=True) + 0.0 * difference)


def of_samples(logprobs: Any, old: Any, advantages: Any, mask: Any) -> Any:
    difference = (logprobs - old) * mask
    return -advantages * torch.exp(difference) + difference.mean()


def by_first_token(logprobs: Any, old: Any, advantages: Any, mask: Any) -> Any:
    """Each token's loss depends on the token before it."""
    return -advantages * torch.exp(logprobs - old) * (1 + logprobs.roll(1, dims=1))


REFUSED: dict[str, tuple[Any, str]] = {
    "undeclared": (undeclared, "depend on other tokens of their sample; say so with the class attribute couples_token"),
    "the token before": (by_first_token, "depend on other"),
    "other samples": (of_samples, r"depend on other samples \(or on chance\)"),
    "a mean": (lambda x, old, a, mask: (-a * x).mean(), r"one loss per token, \[b, T\] = \(8, \d+\), got \(\)"),
    "per sample": (lambda x, old, a, mask: (-a * x).sum(dim=1), r"one loss per token, .* got \(8,\)"),
    "a number": (lambda x, old, a, mask: 1.0, "one loss per token, .* got float"),
    "two results": (lambda x, old, a, mask: (x, x), "one loss per token, .* got tuple"),
    "no gradient": (lambda x, old, a, mask: -a * x.detach(), "must be differentiable in logprobs"),
    "NaN": (lambda x, old, a, mask: -a * x + torch.nan, "losses that are not finite"),
    "infinite": (lambda x, old, a, mask: -a * x / (mask * 0.0), "losses that are not finite"),
    "chance": (lambda x, old, a, mask: -a * x * torch.rand_like(x), "depend on other samples (or on chance)"[:23]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_loss_is_refused_before_anything_moves(name: str) -> None:
    function, told = REFUSED[name]

    class Own(PPOTrainer):
        def policy_losses(self, *given: Any) -> Any:
            return function(*given)

    config = PPOConfig(batch_size=8, mini_batch_size=8, learning_rate=1e-3, use_score_norm=True, use_score_scaling=True)
    ours, batch = Own(config, with_value_head("gpt2"), None, tokenizer()), samples()
    before = weights(ours.model), copy.deepcopy(ours.optimizer.state_dict()), ours.kl_ctl.value
    moments = ours.running.state_dict()
    random_before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    with pytest.raises(ValueError, match=told):
        ours.step(batch.queries, batch.responses, batch.scores, batch.masks)
    for key, value in weights(ours.model).items():
        assert torch.equal(value, before[0][key]), key
    assert ours.optimizer.state_dict() == before[1]
    assert ours.kl_ctl.value == before[2]
    assert ours.running.state_dict() == moments
    assert random.getstate() == random_before[0]
    assert np.random.get_state()[1].tolist() == random_before[1]
    if name != "chance":  # which the user's own function draws
        assert torch.equal(torch.get_rng_state(), random_before[2])
    assert ours.steps_done == 0


def test_a_loss_is_tried_once() -> None:
    """The first step tries it; until it was accepted, every step does."""
    batch, calls = samples(), []

    class Own(PPOTrainer):
        def policy_losses(self, logprobs: Any, old_logprobs: Any, advantages: Any, mask: Any) -> Any:
            calls.append(len(logprobs))
            return super().policy_losses(logprobs, old_logprobs, advantages, mask)

    ours = Own(PPOConfig(batch_size=8, mini_batch_size=8, ppo_epochs=1, **GRPO), gpt2(), None, tokenizer())
    counts = []
    for _ in range(3):
        calls.clear()
        ours.step(batch.queries, batch.responses, batch.scores)
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2]


# --- an override of `loss`, through full logits ------------------------------------------------------------------


class ThroughLogits(PPOTrainer):
    """Overrides `loss`, so it gets full logits."""

    vocabulary = 0

    def loss(self, old_logprobs: Any, values: Any, logits: Any, *rest: Any) -> Any:
        type(self).vocabulary = logits.shape[-1]
        return super().loss(old_logprobs, values, logits, *rest)


TOGETHER: dict[str, dict[str, Any]] = {
    "k3 in the loss": {**GRPO, "kl_in": "loss", "kl_penalty": "k3"},
    "entropy": {**GRPO, "entropy_coef": 0.1},
    "entropy at a temperature": {"entropy_coef": 0.1, "temperature": 0.7},
    "tis": {**GRPO, "importance_correction": "tis"},
    "sequence mask": {**GRPO, "importance_correction": "sequence_mask", "importance_bounds": (0.5, 1.5)},
    "positive": {"positive_nll_coef": 0.1},
    "all": {**GRPO, "kl_in": "loss", "kl_penalty": "k3", "entropy_coef": 0.05, "importance_correction": "icepop",
            "importance_bounds": (0.7, 1.4), "loss_normalization": "samples", "positive_nll_coef": 0.1},
    "gspo": {**GRPO, "policy_loss": "gspo", "cliprange": 0.03},
    "dppo": {**GRPO, "policy_loss": "dppo", "dppo_delta": 0.001},
    "gae": {},
}  # fmt: skip


@pytest.mark.parametrize("name", TOGETHER)
def test_an_override_of_loss_gives_the_update_of_the_fused_path(name: str) -> None:
    settings = TOGETHER[name]
    give = ("old_logprobs",) + (("sampling_logprobs",) if "importance_correction" in settings or name == "dppo" else ())
    found = {}
    for kind in (PPOTrainer, ThroughLogits):
        ThroughLogits.vocabulary = 0
        torch.manual_seed(0)
        if "advantage_estimator" in settings:
            model = moved_a_little(gpt2(), by=0.1)
            reference = moved_a_little(model)
        else:
            model = with_value_head("gpt2")
            reference = moved_a_little(model)
        found[kind] = both(model, reference, trainer_class=kind, give=give, loss=plain_loss, **settings)
        assert (ThroughLogits.vocabulary == 60) == (kind is ThroughLogits)
        assert largest_difference(found[kind]) < 1e-4
    fused, through = found[PPOTrainer], found[ThroughLogits]
    largest = max(float(moved.abs().max()) for moved in fused.moved.values())
    for key, moved in fused.moved.items():
        torch.testing.assert_close(through.moved[key], moved, rtol=0, atol=1e-4 * largest)
    assert fused.stats.keys() - through.stats.keys() <= set()
    for key in ("ppo/loss/policy", "ppo/loss/total", "ppo/policy/entropy", "ppo/policy/approxkl"):
        assert through.stats[key] == pytest.approx(fused.stats[key], rel=1e-4, abs=1e-6)


def test_both_overrides_at_once() -> None:
    """`loss` calls the base, which calls `policy_losses`."""

    class Both(ThroughLogits, SoftPenalty):
        pass

    torch.manual_seed(0)
    model = moved_a_little(gpt2(), by=0.1)
    found = both(model, moved_a_little(model), trainer_class=Both, loss=plain(SoftPenalty), **GRPO)
    assert largest_difference(found) < 1e-4


def test_known_is_of_the_model() -> None:
    """The helper's log-probs at the start differ from the policy's, or ratios would be 1 in all of the above."""
    model, batch = gpt2().eval(), samples()
    config = PPOConfig(batch_size=8, mini_batch_size=8, **GRPO)
    found = known(model, model, batch, config)
    assert max(float((a - b).abs().max()) for a, b in zip(found.old, found.ref, strict=True)) > 0.1
