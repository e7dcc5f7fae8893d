"""Row A3: a skipped mini-batch leaves no trace, and nothing that is not finite ever reaches the weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tiny import batch, config, tokenizer, trainer, with_value_head
from tests.trainer.runs.state_tools import changed, everything, weights_and_optimizer
from trl_step import PPOTrainer

pytestmark = pytest.mark.filterwarnings("ignore:a mini-batch's mean ratio")


class PlainPath(PPOTrainer):
    """Overrides a method that takes logits, so that the step goes the way of release 0.7."""

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss(*args, **kwargs)


@pytest.mark.parametrize("cls", [PPOTrainer, PlainPath])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_skipped_minibatches_leave_weights_and_momentum_alone(cls: type, accumulation: int) -> None:
    ours = trainer(
        "gpt2", cls=cls, mini_batch_size=2, gradient_accumulation_steps=accumulation, ppo_epochs=2, max_grad_norm=1.0
    )
    assert ours.step(*batch())["ppo/policy/skipped"] == 0
    before = weights_and_optimizer(ours)
    assert before["optimizer"], "Adam has momentum that a zero gradient would still act on"

    ours.config.ratio_threshold = 0.5  # every ratio starts at 1
    calls: list[Any] = []
    hook = ours.optimizer.optimizer.register_step_post_hook(lambda *args: calls.append(args))
    with pytest.warns(UserWarning, match=r"mean ratio 1 exceeds ratio_threshold=0\.5"):
        stats = ours.step(*batch(seed=2))

    assert changed(before, weights_and_optimizer(ours)) == []
    assert calls == [], "an optimizer may move weights without a gradient"
    hook.remove()
    assert stats["ppo/policy/skipped"] == 8  # 2 epochs of 4
    assert stats["ppo/loss/total"] == 0

    ours.config.ratio_threshold = 10.0
    assert ours.step(*batch(seed=2))["ppo/policy/skipped"] == 0
    assert "weights" in changed(before, weights_and_optimizer(ours))


@pytest.mark.filterwarnings("ignore:the KL divergence")
def test_an_infinite_ratio_is_skipped() -> None:
    ours = trainer("gpt2")
    ours.step(*batch())
    before = weights_and_optimizer(ours)
    queries, responses, scores = batch()
    never = [torch.full(response.shape, -300.0) for response in responses]  # e^300 is more than a float32 holds
    stats = ours.step(queries, responses, scores, old_logprobs=never)
    assert changed(before, weights_and_optimizer(ours)) == []
    assert stats["ppo/policy/skipped"] == 8  # 4 epochs of 2


@pytest.mark.parametrize("cls", [PPOTrainer, PlainPath])
def test_a_ratio_that_is_no_number_is_skipped(cls: type) -> None:
    """The first update throws the weights out of float32; every mini-batch behind it has ratios of NaN."""
    model = with_value_head("gpt2")
    optimizer = torch.optim.SGD(model.parameters(), lr=3e38)
    ours = cls(config(), model, None, tokenizer(), optimizer=optimizer)
    updates: list[Any] = []
    optimizer.register_step_post_hook(lambda *args: updates.append(args))
    assert ours.step(*batch())["ppo/policy/skipped"] == 7
    assert len(updates) == 1


class Poisoned(PPOTrainer):
    """The first or the last mini-batch of each pair has a ratio that is no number, or a loss of exactly 0."""

    poison: Any
    calls = 0
    which = 0

    def train_minibatch(self, old_logprobs: Any, values: Any, logprobs: Any, *rest: Any) -> Any:
        hit = self.calls % 2 == self.which
        self.calls += 1
        if hit and self.poison == "nan":
            logprobs = logprobs * float("nan")
        self.silence = hit and self.poison == "zero"
        return super().train_minibatch(old_logprobs, values, logprobs, *rest)

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        policy, value, stats = super().loss(*args, **kwargs)
        return (policy * 0, value * 0, stats) if self.silence else (policy, value, stats)


@pytest.mark.parametrize("which", [0, 1])
def test_with_accumulation_only_the_bad_minibatch_is_left_out(which: int) -> None:
    weights = {}
    for poison, skipped in (("nan", 4), ("zero", 0)):
        cls = type("Case", (Poisoned,), {"poison": poison, "which": which})
        ours = trainer("gpt2", cls=cls, mini_batch_size=2, gradient_accumulation_steps=2, ppo_epochs=2)
        assert ours.step(*batch())["ppo/policy/skipped"] == skipped
        weights[poison] = weights_and_optimizer(ours)
    assert changed(weights["nan"], weights["zero"]) == []


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf"), torch.tensor(float("nan")), 1e39])
def test_a_score_that_is_not_finite_is_refused_by_name(score: Any) -> None:
    ours = trainer("gpt2")
    ours.step(*batch())
    before = everything(ours)
    queries, responses, scores = batch()
    scores[5] = score
    with pytest.raises(ValueError, match=r"scores\[5\]"):
        ours.step(queries, responses, scores)
    assert changed(before, everything(ours)) == []


@pytest.mark.parametrize("cls", [PPOTrainer, PlainPath])
def test_log_probs_that_are_not_finite_are_refused_by_name(cls: type) -> None:
    model = with_value_head("gpt2")
    ours = trainer(model, cls=cls, mini_batch_size=1)  # NaN spreads to batch mates through masked attention: 0 * NaN
    ours.step(*batch())
    queries, responses, scores = batch()
    responses[6] = torch.arange(4, 24)
    longest_else = max(len(q) + len(r) for i, (q, r) in enumerate(zip(queries, responses, strict=True)) if i != 6)
    with torch.no_grad():  # only sample 6 reaches this position
        model.pretrained_model.transformer.wpe.weight[longest_else + 1] = float("nan")
    before = everything(ours)
    with pytest.raises(ValueError, match="sample 6: the logprobs"):
        ours.step(queries, responses, scores)
    assert changed(before, everything(ours)) == []


def test_returns_that_would_overflow_the_loss_are_refused_before_any_update() -> None:
    ours = trainer("gpt2", mini_batch_size=2)
    ours.step(*batch())
    before = everything(ours)
    queries, responses, scores = batch()
    scores[3] = 1e30
    with pytest.raises(ValueError, match=r"sample 3: .*too large.*use_score_scaling"):
        ours.step(queries, responses, scores)
    assert changed(before, everything(ours)) == []
    scaled = trainer("gpt2", mini_batch_size=2, use_score_scaling=True)
    assert scaled.step(queries, responses, scores)["ppo/policy/skipped"] == 0


def test_a_refused_step_does_not_count_in_the_running_moments() -> None:
    ours = trainer("gpt2", use_score_scaling=True, adap_kl_ctrl=False, init_kl_coef=1e30)
    ours.step(*batch())  # the KL is 0 as yet
    before = everything(ours)
    assert before["running moments"]["count"] == 8
    with pytest.raises(ValueError, match=r"sample \d: .*too large"):
        ours.step(*batch(seed=2))
    assert changed(before, everything(ours)) == []


def test_a_loss_of_a_subclass_that_is_not_finite_never_reaches_the_weights() -> None:
    class Broken(PPOTrainer):
        calls = 0

        def loss(self, *args: Any, **kwargs: Any) -> Any:
            policy, value, stats = super().loss(*args, **kwargs)
            self.calls += 1
            return policy * float("nan" if self.calls == 2 else 1.0), value, stats

    ours = trainer("gpt2", cls=Broken, mini_batch_size=2, gradient_accumulation_steps=2)
    before = weights_and_optimizer(ours)
    with pytest.raises(ValueError, match="the loss of a mini-batch is nan"):
        ours.step(*batch())
    assert changed(before, weights_and_optimizer(ours)) == []
    assert all(p.grad is None or not p.grad.any() for p in ours.model.parameters()), "half a gradient is left behind"
