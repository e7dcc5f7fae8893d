"""Row A2b: log-probs are taken under the law that tokens are drawn from; where they cannot be, that is said once."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig

from tests.tiny import EOS, VOCABULARY, batch, trainer, with_value_head
from trl_step import PPOTrainer


class OwnPenalty(PPOTrainer):
    """Overrides what takes the log-probs of the whole vocabulary."""

    def _kl_penalty(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        return super()._kl_penalty(logprob, ref_logprob)


class Plain(PPOTrainer):
    """Goes the way of release 0.7, with full logits."""

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        return super().loss(*args, **kwargs)


def policy(head: str) -> Any:
    """A GPT-2 whose head is a plain product, or one that has an adapter as well."""
    if head == "product":
        return with_value_head("gpt2")
    lora = LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["c_attn", "lm_head"], init_lora_weights=False)
    return with_value_head("gpt2", peft_config=lora)


def by_hand(model: Any, query: torch.Tensor, response: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs of the whole vocabulary where the response is predicted [R, V]."""
    with torch.no_grad():
        logits = model.pretrained_model.eval()(torch.cat((query, response))[None]).logits[0].double() / temperature
    return torch.log_softmax(logits, -1)[len(query) - 1 : -1]


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.*tie_word_embeddings", "ignore:the KL divergence")
@pytest.mark.parametrize("head", ["product", "adapter"])
@pytest.mark.parametrize(
    ("kl_penalty", "cls"), [("kl", PPOTrainer), ("full", PPOTrainer), ("full", OwnPenalty), ("kl", Plain)]
)
def test_the_temperature_divides_the_logits_wherever_a_log_prob_is_taken(kl_penalty: str, cls: type, head: str) -> None:
    model, reference = policy(head), with_value_head("gpt2", seed=5)
    samples = list(zip(*batch()[:2], strict=True))
    options = {"temperature": 0.5, "kl_penalty": kl_penalty, "mini_batch_size": 8, "ppo_epochs": 1}
    own, ref = ([by_hand(m, *sample, 0.5) for sample in samples] for m in (model, reference))
    stats = trainer(model, ref_model=reference, cls=cls, **options).step(*batch())
    expected_kl = 0.0
    for i, (query, response) in enumerate(samples):
        place = slice(len(query) - 1, len(query) - 1 + len(response))
        chosen = [x.gather(1, response[:, None])[:, 0].float() for x in (own[i], ref[i])]
        torch.testing.assert_close(stats["objective/logprobs"][i, place], chosen[0])
        torch.testing.assert_close(stats["objective/ref_logprobs"][i, place], chosen[1])
        divergence = own[i].exp() * (own[i] - ref[i]) if kl_penalty == "full" else chosen[0] - chosen[1]
        expected_kl += float(divergence.sum()) / len(samples)
    assert stats["objective/kl"] == pytest.approx(expected_kl, rel=1e-4)
    assert stats["ppo/policy/approxkl"] == pytest.approx(0, abs=1e-10)  # the training forward divides as well
    tokens = sum(len(response) for _, response in samples)
    entropy = -sum(float((x.exp() * x).sum()) for x in own) / tokens
    assert stats["ppo/policy/entropy"] == pytest.approx(entropy, rel=1e-5)


def test_the_fast_and_the_plain_path_train_alike_under_a_temperature() -> None:
    fast, plain = (trainer("gpt2", cls=cls, temperature=1.7).step(*batch()) for cls in (PPOTrainer, Plain))
    for key in ("ppo/loss/total", "ppo/policy/entropy", "ppo/policy/approxkl", "ppo/returns/mean"):
        assert fast[key] == pytest.approx(plain[key], rel=1e-5, abs=1e-7)


CASES = {
    "top_k=20": {"top_k": 20},
    "top_k=50": {},  # what transformers does where nobody says anything
    "top_p=0.9": {"top_k": 0, "top_p": 0.9},
    "min_p=0.1": {"top_k": 0, "min_p": 0.1},
    "temperature=0.7": {"top_k": 0, "temperature": 0.7},
    "min_length=3": {"top_k": 0, "min_length": 3},
    "min_new_tokens=2": {"top_k": 0, "min_new_tokens": 2},
    "repetition_penalty=1.2": {"top_k": 0, "repetition_penalty": 1.2},
    "bad_words_ids": {"top_k": 0, "bad_words_ids": [[5]]},
}


@pytest.mark.parametrize("named", CASES)
def test_another_sampling_law_is_told_once_with_the_setting(named: str) -> None:
    ours = trainer("gpt2")
    sampling = {"do_sample": True, "max_new_tokens": 2, **CASES[named]}
    query = batch()[0][0]
    with pytest.warns(UserWarning, match=rf"sampled with .*{named.replace('.', '[.]')}"):
        ours.generate(query, **sampling)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.generate(query, **sampling)


@pytest.mark.parametrize(
    ("temperature", "sampling"),
    [
        (1.0, {"top_k": 0, "top_p": 1.0}),
        (0.7, {"top_k": 0, "temperature": 0.7}),
        (1.0, {"top_k": VOCABULARY}),
        (1.0, {"top_k": 0, "min_length": -1}),
        (1.0, {"do_sample": False}),
    ],
)
def test_sampling_from_the_policy_itself_is_not_warned_of(temperature: float, sampling: dict[str, Any]) -> None:
    ours = trainer("gpt2", temperature=temperature)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.generate(batch()[0][0], **{"do_sample": True, "max_new_tokens": 2, "eos_token_id": EOS, **sampling})


def test_the_settings_of_the_generation_config_count() -> None:
    model = with_value_head("gpt2")
    model.pretrained_model.generation_config.update(do_sample=True, top_k=0, top_p=0.8)
    with pytest.warns(UserWarning, match=r"top_p=0\.8"):
        trainer(model).generate(batch()[0][0], max_new_tokens=2)
