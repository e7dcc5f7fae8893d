"""The table of recorded runs of on-policy trainers: name -> settings of the release and what is put into it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TRAINERS = {"ppov2": "0.11.4", "rloo": "0.15.2", "ppo": "0.26.2"}
"""Trainer -> release of TRL: `PPOv2Trainer`, `RLOOTrainer`, `experimental.ppo.PPOTrainer`."""

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 1,
    "total_episodes": 16,  # two updates
    "response_length": 6,
    "local_rollout_forward_batch_size": 8,
    "stop_token": "eos",
    "learning_rate": 0.005,
    "adam_epsilon": 1e-3,  # a gradient that is rounding noise must not move a weight by a whole step
    "num_sample_generations": 0,
}
"""Settings of every run, where the case says nothing else; all others have the release's default."""


@dataclass(frozen=True)
class OnPolicyCase:
    """One run of two updates.

    Attributes:
        settings: over `COMMON`, under the names of the release
        shape: of all models
        prompts: the data set holds so many of `on_policy_inputs.prompts()`
        end: the token that ends a completion, `END` or `STOP` of `on_policy_inputs`
        reward: `model` or `function`
        reference: whether a reference is passed
    """

    settings: dict[str, Any] = field(default_factory=dict)
    shape: str = "gpt2"
    prompts: int = 24
    end: int = 1
    reward: str = "model"
    reference: bool = True


_HALVES = {"per_device_train_batch_size": 4}
_SHARED: dict[str, OnPolicyCase] = {
    "plain": OnPolicyCase(),
    "gpt_neox": OnPolicyCase(shape="gpt_neox"),
    "kl-coef": OnPolicyCase({"kl_coef": 0.2}),
    "temperature": OnPolicyCase({"temperature": 1.3}),
    "missing-eos-penalty": OnPolicyCase({"missing_eos_penalty": 1.0}),
    "no-stop-token": OnPolicyCase({"stop_token": None}),
    "no-stop-token-penalty": OnPolicyCase({"stop_token": None, "missing_eos_penalty": 1.0}),
    "stop-token-id": OnPolicyCase({"stop_token": None, "stop_token_id": 2}, end=2),
    "epochs-2": OnPolicyCase({"num_ppo_epochs": 2}),
    "cliprange": OnPolicyCase({"num_ppo_epochs": 2, "cliprange": 0.03}),
    "rollout-batches": OnPolicyCase({"local_rollout_forward_batch_size": 3}),
    "accumulation-2": OnPolicyCase({"gradient_accumulation_steps": 2, **_HALVES}),
    "data-ends": OnPolicyCase({"gradient_accumulation_steps": 2, **_HALVES}, prompts=8),
}
_VALUES: dict[str, OnPolicyCase] = {
    "whiten-rewards": OnPolicyCase({"whiten_rewards": True}),
    "whiten-rewards-penalty": OnPolicyCase({"whiten_rewards": True, "missing_eos_penalty": 1.0}),
    "gamma-lam": OnPolicyCase({"gamma": 0.9, "lam": 0.7}),
    "vf-coef": OnPolicyCase({"vf_coef": 1.0}),
    "cliprange-value": OnPolicyCase({"num_ppo_epochs": 2, "vf_coef": 1.0, "cliprange_value": 0.02}),
}
_TWO = {"num_ppo_epochs": 2, "num_mini_batches": 2}

CASES: dict[str, dict[str, OnPolicyCase]] = {
    "ppov2": {
        **_SHARED,
        **_VALUES,
        # here a batch is per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches
        "mini-batches-2": OnPolicyCase({"num_mini_batches": 2, **_HALVES}),
        "epochs-2-mini-batches-2": OnPolicyCase({**_TWO, **_HALVES}),
        "epochs-2-mini-batches-2-accumulation-2": OnPolicyCase(
            {**_TWO, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
        ),
    },
    "rloo": {
        **{name: case for name, case in _SHARED.items() if name != "data-ends"},
        "data-ends": OnPolicyCase({"gradient_accumulation_steps": 2, **_HALVES}, prompts=4),
        "mini-batches-2": OnPolicyCase({"num_mini_batches": 2, **_HALVES}),
        "epochs-2-mini-batches-2": OnPolicyCase({**_TWO, **_HALVES}),
        "rloo-k-4": OnPolicyCase({"rloo_k": 4}),
        "token-level-kl": OnPolicyCase({"token_level_kl": True}),
        "normalize-reward": OnPolicyCase({"normalize_reward": True}),
        "reward-clip-range": OnPolicyCase({"normalize_reward": True, "reward_clip_range": 0.6}),
        "normalize-reward-penalty": OnPolicyCase({"normalize_reward": True, "missing_eos_penalty": 1.0}),
        "normalize-reward-token-level-kl": OnPolicyCase(
            {"normalize_reward": True, "token_level_kl": True, "missing_eos_penalty": 1.0, "rloo_k": 4}
        ),
        "normalize-advantage": OnPolicyCase({"normalize_advantage": True}),
        "reward-function": OnPolicyCase(reward="function"),
        "reward-function-penalty": OnPolicyCase({"missing_eos_penalty": 1.0}, reward="function"),
    },
    "ppo": {
        **_SHARED,
        **_VALUES,
        "k3": OnPolicyCase({"kl_estimator": "k3"}),
        "k3-kl-coef": OnPolicyCase({"kl_estimator": "k3", "kl_coef": 0.4}),
        "k3-whiten-rewards": OnPolicyCase({"kl_estimator": "k3", "whiten_rewards": True, "missing_eos_penalty": 1.0}),
        "reference-copied": OnPolicyCase({"num_ppo_epochs": 2}, reference=False),
        # here a batch is per_device_train_batch_size * gradient_accumulation_steps
        "mini-batches-2": OnPolicyCase({"num_mini_batches": 2}),
        "epochs-2-mini-batches-2": OnPolicyCase(_TWO),
        "epochs-2-mini-batches-2-accumulation-2": OnPolicyCase({**_TWO, "gradient_accumulation_steps": 2, **_HALVES}),
    },
}
"""Trainer -> name -> case."""
