"""Every estimator, loss, normalization, KL and correction against a plain loop: one SGD step moves by the gradient.

Ratios are not 1, as `old_logprobs` are given with noise. Tolerance: 1e-4 of the largest gradient; the update itself
rounds weights of order 1 at 6e-8.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)

from tests.tiny import IDS, PAD, VOCABULARY, gpt2, llama, t5, tokenizer, with_value_head
from tests.trainer.plain_step import both, known, largest_difference, moved_a_little, plain_loss, samples
from trl_step import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PPOConfig,
    PPOTrainer,
)

GRPO: dict[str, Any] = {"advantage_estimator": "grpo"}
GSPO: dict[str, Any] = {"policy_loss": "gspo", "cliprange": 0.03, "cliprange_high": 0.05}
K3: dict[str, Any] = {"kl_in": "loss", "kl_penalty": "k3"}
CONSTANT: dict[str, Any] = {"loss_normalization": "constant", "loss_constant_length": 11}

CASES: dict[str, dict[str, Any]] = {
    "v0.7": {},
    "grpo": GRPO,
    "grpo, batch": {**GRPO, "group_scale": "batch"},
    "Dr. GRPO": {**GRPO, "group_scale": "none", **CONSTANT},
    "rloo": {"advantage_estimator": "rloo"},
    "rloo of sequences": {"advantage_estimator": "rloo", "policy_loss": "sequence_clip"},
    "reinforce++": {"advantage_estimator": "reinforce_plus_plus", "gamma": 0.9, "policy_loss": "reinforce"},
    "remax": {"advantage_estimator": "remax", "gamma": 0.95},
    "gae, not whitened": {"whiten_advantages": False},
    "grpo, whitened": {**GRPO, "whiten_advantages": True},
    "DAPO": {**GRPO, "cliprange": 0.05, "cliprange_high": 0.1, "loss_normalization": "tokens"},
    "dual clip": {**GRPO, "dual_clip": 1.1, "cliprange_high": 0.05},
    "gspo": {**GRPO, **GSPO, "loss_normalization": "samples"},
    "gspo with values": {**GSPO, "dual_clip": 1.02},
    "cispo": {**GRPO, "policy_loss": "cispo", "cispo_bound": 1.1},
    "reinforce": {**GRPO, "policy_loss": "reinforce"},
    "sapo": {**GRPO, "policy_loss": "sapo", "sapo_temperatures": (1.0, 3.0)},
    "dppo": {**GRPO, "policy_loss": "dppo", "dppo_delta": 0.001},
    "samples": {"loss_normalization": "samples"},
    "constant": CONSTANT,
    "k3 in the loss": {**GRPO, **K3},
    "k2 in the loss": {"kl_in": "loss", "kl_penalty": "mse"},
    "abs in the loss": {**GRPO, "kl_in": "loss", "kl_penalty": "abs"},
    "k3 in the reward": {**GRPO, "kl_penalty": "k3"},
    "entropy": {"entropy_coef": 0.1},
    "entropy and temperature": {**GRPO, "entropy_coef": 0.05, "temperature": 0.7, "loss_normalization": "samples"},
    "tis": {**GRPO, "importance_correction": "tis"},
    "tis, other bounds": {**GRPO, "importance_correction": "tis", "importance_bounds": (0.9, 1.2)},
    "icepop": {**GRPO, "importance_correction": "icepop", "importance_bounds": (0.8, 1.2)},
    "sequence mask": {"importance_correction": "sequence_mask", "importance_bounds": (0.5, 1.5)},
    "geometric mask": {**GRPO, "importance_correction": "geometric_mask", "importance_bounds": (0.8, 1.1)},
    "value lambda": {"value_lam": 1.0, "lam": 0.7, "vf_coef": 1.0},
    "length": {"length_adaptive_alpha": 0.4, "value_lam": 1.0},
    "turns": {"gae_level": "turn", "gamma": 0.9, "lam": 0.8, "vf_coef": 1.0},
    "positive": {"positive_nll_coef": 0.1},
    "positive, samples": {**GRPO, "positive_nll_coef": 0.1, "loss_normalization": "samples"},
    "positive, constant": {**GRPO, "positive_nll_coef": 0.1, **CONSTANT},
    "VAPO": {"cliprange_high": 0.28, "value_lam": 1.0, "length_adaptive_alpha": 0.4, "positive_nll_coef": 0.1,
             "loss_normalization": "tokens", "vf_coef": 0.5},
}  # fmt: skip


def drawn(seed: int) -> dict[str, Any]:
    """Settings at random: any estimator with any loss, normalization, KL and correction."""
    stream = random.Random(seed)
    found: dict[str, Any] = {
        "advantage_estimator": stream.choice(["gae", "grpo", "rloo", "reinforce_plus_plus", "remax"]),
        "policy_loss": stream.choice(["clip", "gspo", "sequence_clip", "cispo", "reinforce", "sapo", "dppo"]),
        "loss_normalization": stream.choice(["mini_batch", "tokens", "samples", "constant"]),
        "kl_in": stream.choice(["reward", "loss"]),
        "kl_penalty": stream.choice(["mse", "abs", "k3"]),
        "importance_correction": stream.choice([None, "tis", "icepop", "sequence_mask", "geometric_mask"]),
        "whiten_advantages": stream.choice([None, True, False]),
        "entropy_coef": stream.choice([0.0, 0.02]),
        "positive_nll_coef": stream.choice([0.0, 0.1]),
        "gamma": stream.choice([1.0, 0.9]),
        "cliprange": 0.04,
    }
    if found["loss_normalization"] == "constant":
        found["loss_constant_length"] = 9
    if found["importance_correction"] is not None:
        found["importance_bounds"] = (0.7, 1.4)
    return found


def compare(settings: dict[str, Any], model: Any = None, **options: Any) -> float:
    settings = dict(settings)
    give = ["old_logprobs"]
    if settings.get("importance_correction") or settings.get("policy_loss") == "dppo":
        give.append("sampling_logprobs")
    if settings.get("advantage_estimator") == "remax":
        give.append("baseline_scores")
    torch.manual_seed(0)
    model = moved_a_little(gpt2(), by=0.1) if model is None else model
    reference = options.pop("reference", moved_a_little(model))
    if settings.get("advantage_estimator", "gae") == "gae":
        model, reference = AutoModelForCausalLMWithValueHead(model), reference
    return largest_difference(both(model, reference, give=tuple(give), **settings, **options))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_one_step_is_the_plain_loop(name: str) -> None:
    assert compare(CASES[name]) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(25))
def test_settings_go_together(seed: int) -> None:
    assert compare(drawn(seed)) < 1e-4


CUT = ("gspo", "Dr. GRPO", "entropy", "tis", "positive, samples", "turns", "k3 in the loss", "VAPO")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CUT)
def test_neither_parts_nor_padding_nor_order_matter(name: str) -> None:
    assert compare(CASES[name], forward_tokens=16) < 1e-4
    assert compare(CASES[name], padding_side="left") < 1e-4
    assert compare(CASES[name], batch=samples().take([5, 2, 7, 0, 1, 6, 4, 3])) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CUT)
def test_accumulated_mini_batches_are_the_whole_batch(name: str) -> None:
    """For a mean over mini-batches the plain loop has no such case, so those settings take one over tokens."""
    settings = {"loss_normalization": "tokens", **CASES[name]}
    assert compare({**settings, "mini_batch_size": 2, "gradient_accumulation_steps": 4}) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_llama_takes_them_too() -> None:
    torch.manual_seed(0)
    model = moved_a_little(llama(), by=0.05)
    assert compare({**CASES["gspo"], "entropy_coef": 0.05}, model=model) < 1e-4


GSPO_K3: dict[str, Any] = {**GRPO, **GSPO, **K3, "loss_normalization": "samples", "entropy_coef": 0.05}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [GSPO_K3, {**GRPO, "policy_loss": "cispo", "cispo_bound": 1.1}, {}])
def test_an_encoder_decoder_takes_them_too(settings: dict[str, Any]) -> None:
    """The decoder's start token is given: it neither counts nor has a log-prob."""
    torch.manual_seed(0)
    model = moved_a_little(t5(), by=0.05)
    if not settings:
        model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(model)
    batch = samples(decoder_start=PAD)
    found = both(model, moved_a_little(model), batch, **settings)
    assert largest_difference(found) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_takes_them_too() -> None:
    """A PeftModel without a value head is its own reference."""
    torch.manual_seed(0)
    model: Any = get_peft_model(gpt2(), LoraConfig(r=4, task_type="CAUSAL_LM", fan_in_fan_out=True))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    found = both(model, None, **GSPO_K3)
    assert largest_difference(found) < 1e-4
    assert found.stats["objective/kl"] == pytest.approx(0.0, abs=0.5)


@pytest.mark.filterwarnings("ignore")
def test_shared_layers_take_them_too() -> None:
    torch.manual_seed(0)
    found = both(moved_a_little(gpt2(), by=0.1), None, num_shared_layers=1, **GSPO_K3)
    assert largest_difference(found) < 1e-4


# --- critic ----------------------------------------------------------------------------------------------------------


def classifier(kind: Any = LlamaForSequenceClassification) -> Any:
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return kind(LlamaConfig(vocab_size=VOCABULARY, num_labels=1, **sizes, **IDS))


class PlainCritic(torch.nn.Module):
    """Policy and critic asked one after the other, for `plain_step.ask`."""

    def __init__(self, policy: Any, value_model: Any) -> None:
        super().__init__()
        self.policy, self.value_model, self.config = policy, value_model, policy.config

    def forward(self, input_ids: torch.Tensor) -> Any:
        if hasattr(self.value_model, "v_head"):
            values = self.value_model(input_ids)[2]
        else:
            hidden = self.value_model.model(input_ids).last_hidden_state
            values = self.value_model.score(hidden).squeeze(-1)
        return self.policy(input_ids).logits, None, values


def critics() -> dict[str, Any]:
    return {
        "sequence classifier": classifier(),
        "token classifier": classifier(LlamaForTokenClassification),
        "value head": with_value_head("llama", seed=5),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["sequence classifier", "token classifier", "value head"])
def test_a_separate_critic_is_the_plain_loop(kind: str) -> None:
    """Policy and critic move by the gradients of one loss; neither reaches the other."""
    torch.manual_seed(0)
    policy, value_model = moved_a_little(gpt2(), by=0.1), critics()[kind]
    batch, config = samples(), PPOConfig(batch_size=8, mini_batch_size=8, ppo_epochs=1, vf_coef=0.5, value_lam=1.0)
    reference = moved_a_little(policy)
    together = PlainCritic(policy, value_model).eval()
    found = known(together, reference.eval(), batch, config)
    parameters = [p for p in together.parameters() if p.requires_grad]
    loss = plain_loss(together, config, batch, found, config.init_kl_coef)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    ours = PPOTrainer(config, policy, reference, tokenizer(), optimizer=optimizer, value_model=value_model)
    stats = ours.step(batch.queries, batch.responses, batch.scores, batch.masks, old_logprobs=found.old)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    for was, p, gradient in zip(before, parameters, gradients, strict=True):
        expected = torch.zeros_like(p) if gradient is None else gradient
        torch.testing.assert_close(was - p.detach(), expected, rtol=0, atol=1e-4 * largest)
    assert stats["ppo/val/error"] > 0


def test_the_critic_is_clipped_by_itself() -> None:
    """A huge value loss does not shrink the policy's update."""
    moved = {}
    for vf_coef in (0.1, 1e4):
        torch.manual_seed(0)
        policy = gpt2()
        config = PPOConfig(batch_size=8, mini_batch_size=8, ppo_epochs=1, max_grad_norm=0.1, vf_coef=vf_coef, seed=0)
        value_model = classifier()
        optimizer = torch.optim.SGD([*policy.parameters(), *value_model.parameters()], lr=1.0)
        before = policy.transformer.wte.weight.detach().clone()
        ours = PPOTrainer(config, policy, None, tokenizer(), optimizer=optimizer, value_model=value_model)
        batch = samples()
        ours.step(batch.queries, batch.responses, batch.scores)
        moved[vf_coef] = before - policy.transformer.wte.weight.detach()
    torch.testing.assert_close(moved[0.1], moved[1e4], rtol=0, atol=1e-7)


@pytest.mark.parametrize("separate", [True, False])
def test_in_the_warm_up_only_values_train(separate: bool) -> None:
    batch = samples()
    critic = classifier() if separate else None
    config = PPOConfig(batch_size=8, mini_batch_size=4, learning_rate=1e-3, value_warmup_steps=2)
    policy = gpt2() if separate else with_value_head("gpt2")
    ours = PPOTrainer(config, policy, None, tokenizer(), value_model=critic)
    plain = policy if separate else policy.pretrained_model
    errors = []
    for step in range(3):
        before = [p.detach().clone() for p in plain.parameters()]
        stats = ours.step(batch.queries, batch.responses, batch.scores, batch.masks)
        errors.append(stats["ppo/val/error"])
        moved = not all(torch.equal(a, b) for a, b in zip(before, plain.parameters(), strict=True))
        assert moved == (step == 2)
        assert stats["ppo/policy/ratio_error"] < 1e-5
    assert errors[1] < errors[0]


def test_the_values_have_their_own_learning_rate() -> None:
    ours = PPOTrainer(
        PPOConfig(batch_size=8, mini_batch_size=8, learning_rate=1e-5, value_learning_rate=1e-3),
        with_value_head("gpt2"),
        None,
        tokenizer(),
    )
    groups = ours.optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-5, 1e-3]
    assert [p.shape for p in groups[1]["params"]] == [(1, 32), (1,)]
    model = with_value_head("gpt2")
    optimizer = torch.optim.Adam(model.parameters())
    with pytest.raises(ValueError, match=r"value_learning_rate=0\.001 acts on the optimizer that the trainer makes"):
        PPOTrainer(ours.config, model, None, tokenizer(), optimizer=optimizer)


@pytest.mark.parametrize(
    ("value_model", "told"),
    [
        (lambda: "a name", "must be a value-head model or a transformers model with one label, got str"),
        (gpt2, "must be a value-head model, or a decoder for sequence or token classification with num_labels=1"),
        (lambda: BertForSequenceClassification(
            BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
                       vocab_size=VOCABULARY, num_labels=1)), "is not causal"),
        (lambda: LlamaForSequenceClassification(
            LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
                        vocab_size=50, num_labels=1)), "value_model knows 50 token ids and model 60"),
    ],
)  # fmt: skip
def test_what_is_no_critic_is_refused(value_model: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PPOTrainer(PPOConfig(batch_size=8, mini_batch_size=8), gpt2(), None, tokenizer(), value_model=value_model())


def test_a_critic_without_use_is_refused() -> None:
    config = PPOConfig(batch_size=8, mini_batch_size=8, advantage_estimator="grpo")
    with pytest.raises(ValueError, match="needs no values; leave value_model out"):
        PPOTrainer(config, gpt2(), None, tokenizer(), value_model=classifier())
    exact = PPOConfig(batch_size=8, mini_batch_size=8, exact_v07=True)
    with pytest.raises(ValueError, match="has no separate critic"):
        PPOTrainer(exact, gpt2(), None, tokenizer(), value_model=classifier())
    config = PPOConfig(batch_size=8, mini_batch_size=8)
    policy = gpt2()
    optimizer = torch.optim.Adam(policy.parameters())
    with pytest.raises(ValueError, match="optimizer holds no parameter of value_model"):
        PPOTrainer(config, policy, None, tokenizer(), optimizer=optimizer, value_model=classifier())


def test_a_critic_is_saved_and_resumed(tmp_path: Path) -> None:
    batch = samples()

    def build() -> PPOTrainer:
        torch.manual_seed(0)
        config = PPOConfig(batch_size=8, mini_batch_size=4, learning_rate=1e-3, value_warmup_steps=1)
        return PPOTrainer(config, gpt2(), None, tokenizer(), value_model=classifier())

    whole = build()
    for _ in range(2):
        whole.step(batch.queries, batch.responses, batch.scores)
    first = build()
    first.step(batch.queries, batch.responses, batch.scores)
    first.save_state(tmp_path / "state")
    second = build()
    second.load_state(tmp_path / "state")
    second.step(batch.queries, batch.responses, batch.scores)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), second.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    second.save_pretrained(str(tmp_path / "saved"))
    GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    loaded = LlamaForSequenceClassification.from_pretrained(tmp_path / "saved" / "value_model")
    torch.testing.assert_close(loaded.score.weight, second.model.critic.value_model.score.weight, rtol=0, atol=0)


# --- without values --------------------------------------------------------------------------------------------------


def test_a_plain_model_is_a_policy_without_values(tmp_path: Path) -> None:
    batch, model = samples(), gpt2()
    config = PPOConfig(batch_size=8, mini_batch_size=4, learning_rate=1e-3, advantage_estimator="grpo")
    ours = PPOTrainer(config, model, None, tokenizer())
    stats = ours.step(batch.queries, batch.responses, batch.scores, batch.masks)
    assert stats["objective/kl"] == 0.0
    assert not [key for key in stats if key.startswith(("ppo/val/", "ppo/returns/")) or key == "ppo/loss/value"]
    assert {key: stats[f"ppo/group/{key}"] for key in ("count", "single", "flat")} == {
        "count": 3.0, "single": 0.0, "flat": 0.0,
    }  # fmt: skip
    assert len(ours.generate(batch.queries[:2], return_prompt=False, max_new_tokens=3, do_sample=False)) == 2
    ours.save_pretrained(str(tmp_path / "saved"))
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(saved.transformer.wte.weight, model.transformer.wte.weight, rtol=0, atol=0)
    ours.save_state(tmp_path / "state")
    assert ours.load_state(tmp_path / "state") == 1
    again = ours.step(batch.queries, batch.responses, batch.scores, batch.masks)
    assert again["objective/kl"] != 0.0


def test_a_value_head_without_use_stays_as_it_is() -> None:
    batch, model = samples(), with_value_head("gpt2")
    config = PPOConfig(batch_size=8, mini_batch_size=4, learning_rate=1e-3, advantage_estimator="rloo")
    with pytest.warns(UserWarning, match="needs no values: the value head stays as it is"):
        ours = PPOTrainer(config, model, None, tokenizer())
    before = model.v_head.summary.weight.detach().clone()
    trunk = model.pretrained_model.transformer.wte.weight.detach().clone()
    stats = ours.step(batch.queries, batch.responses, batch.scores, batch.masks)
    assert torch.equal(model.v_head.summary.weight, before)
    assert not torch.equal(model.pretrained_model.transformer.wte.weight, trunk)
    assert "ppo/val/error" not in stats


def test_gae_needs_values() -> None:
    with pytest.raises(ValueError, match=r"needs values\. Wrap the model, pass a value_model"):
        PPOTrainer(PPOConfig(batch_size=8, mini_batch_size=8), gpt2(), None, tokenizer())
