"""Which settings of `PPOConfig` act together: contradictions are refused, and settings without effect are warned of."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

from trl_step.algorithms.importance import ImportanceCorrection
from trl_step.algorithms.losses.policy import COUPLED
from trl_step.models.notices import warn_user

_ACTS_WITH: dict[str, tuple[str, tuple[Any, ...]]] = {
    "group_scale": ("advantage_estimator", ("grpo",)),
    "cliprange_high": ("policy_loss", ("clip", *COUPLED)),
    "dual_clip": ("policy_loss", ("clip", *COUPLED)),
    "cispo_bound": ("policy_loss", ("cispo",)),
    "sapo_temperatures": ("policy_loss", ("sapo",)),
    "dppo_delta": ("policy_loss", ("dppo",)),
    "loss_constant_length": ("loss_normalization", ("constant",)),
    "importance_bounds": ("importance_correction", get_args(ImportanceCorrection)),
    "value_learning_rate": ("advantage_estimator", ("gae",)),
    "value_warmup_steps": ("advantage_estimator", ("gae",)),
    "value_lam": ("advantage_estimator", ("gae",)),
    "length_adaptive_alpha": ("advantage_estimator", ("gae",)),
    "gae_level": ("advantage_estimator", ("gae",)),
    "pad_max_len": ("pad_for_acceleration", (True,)),
    # settings of release 0.7
    "cliprange": ("policy_loss", ("clip", *COUPLED)),
    "gamma": ("advantage_estimator", ("gae", "reinforce_plus_plus", "remax")),
    "lam": ("advantage_estimator", ("gae",)),
    "vf_coef": ("advantage_estimator", ("gae",)),
    "cliprange_value": ("advantage_estimator", ("gae",)),
    "target": ("adap_kl_ctrl", (True,)),
    "horizon": ("adap_kl_ctrl", (True,)),
}
"""setting: (another setting, what that must be for the first to have an effect)"""
_OF_V07 = ("cliprange", "gamma", "lam", "vf_coef", "cliprange_value", "target", "horizon")
"""Settings that a script of release 0.7 may leave as they are while it tries estimators: a warning, not an error."""
_AFTER_V07 = {
    *_ACTS_WITH, "advantage_estimator", "policy_loss", "whiten_advantages", "kl_in", "entropy_coef",
    "importance_correction", "positive_nll_coef", "loss_normalization",
} - {*_OF_V07, "pad_max_len"}  # fmt: skip
"""Settings of the algorithm that release 0.7 does not have."""


def check_together(config: Any) -> None:
    """Refuse settings that cannot act together, and warn of those that have no effect.

    Args:
        config: a `PPOConfig`

    Raises:
        ValueError: a setting acts only with another value of a second one, or needs a second one; the message names
            both.
    """
    changed = {f.name for f in fields(config) if getattr(config, f.name) != f.default}
    refuse_contradictions(config, changed)
    for name, (other, values) in _ACTS_WITH.items():
        value = getattr(config, name)
        if name not in changed or value is None or getattr(config, other) in values:
            continue
        set_to, needed = f"{name}={value!r}", " or ".join(map(repr, values))
        if name not in _OF_V07:
            raise ValueError(f"{set_to} acts only with {other}={needed}, but {other} is {getattr(config, other)!r}")
        warn_user(f"{set_to} has no effect with {other}={getattr(config, other)!r}; it acts with {needed}")
    warn_of_weak_settings(config, changed)


def refuse_contradictions(config: Any, changed: set[str]) -> None:
    """Refuse settings that exclude each other, or lack another one.

    Args:
        changed: those that are not at their defaults
    """
    new = changed & _AFTER_V07
    if config.exact_v07 and (new or config.kl_penalty == "k3"):
        name = min(new, default="kl_penalty")
        raise ValueError(
            f"{name}={getattr(config, name)!r} with exact_v07=True: release 0.7 has no such setting; leave one of "
            "them out"
        )
    if config.loss_normalization == "constant" and config.loss_constant_length is None:
        raise ValueError('loss_normalization="constant" needs loss_constant_length, the longest response in tokens')
    if config.kl_in == "loss" and config.kl_penalty == "full":
        raise ValueError(
            'kl_penalty="full" with kl_in="loss" would need the whole distributions of both models in every '
            'mini-batch; take "k3" or "mse", whose gradients have the same mean for samples of the policy'
        )
    if config.pad_for_acceleration and config.pad_max_len is None:
        raise ValueError("pad_for_acceleration=True needs pad_max_len, the length in tokens to pad every batch to")
    for other in ("exact_v07", "pad_for_acceleration"):
        if config.padding_free and getattr(config, other):
            raise ValueError(f"padding_free=True with {other}=True: the latter needs the padding; leave one out")
    if config.save_every is not None and not config.save_dir:
        raise ValueError(f"save_every={config.save_every} needs save_dir, the folder to save the run's states in")
    if config.push_to_hub_if_best_kwargs and "repo_id" not in config.push_to_hub_if_best_kwargs:
        raise ValueError("push_to_hub_if_best_kwargs must contain the key 'repo_id', the hub repository to push to")


def warn_of_weak_settings(config: Any, changed: set[str]) -> None:
    """Warn of settings that do next to nothing together.

    Args:
        changed: those that are not at their defaults
    """
    if config.kl_in == "loss" and config.kl_penalty == "kl" and config.init_kl_coef:
        warn_user(
            'kl_in="loss" with kl_penalty="kl": the gradient of logprob - ref_logprob is 0 on average, so this '
            'penalty holds nothing back; take "k3" or "mse"'
        )
    if config.policy_loss == "gspo" and config.cliprange >= 0.05:
        warn_user(
            'policy_loss="gspo" clips the geometric mean of the ratios of a whole response, and '
            f"cliprange={config.cliprange:g} hardly ever does; its authors take cliprange=3e-4, cliprange_high=4e-4"
        )
    if config.needs_values and config.vf_coef == 0:
        warn_user(
            "vf_coef=0: the values never train, and advantages are made of them; take an advantage_estimator without "
            'values, such as "rloo"'
        )
    if config.adap_kl_ctrl and config.init_kl_coef == 0 and "target" in changed:
        warn_user(
            f"target={config.target:g} has no effect with init_kl_coef=0: the adaptive controller multiplies the "
            "coefficient, and 0 stays 0"
        )
    if config.keep_last is not None and config.save_every is None:
        warn_user(f"keep_last={config.keep_last} has no effect without save_every: no state is saved by itself")
