"""Which settings of `PPOConfig` act together, and what is said of those that do not."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any, get_args

from trl_step.algorithms.importance import ImportanceCorrection
from trl_step.algorithms.losses.policy import COUPLED

# setting: (another setting, what that must be for the first to have an effect)
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
    # settings of release 0.7
    "cliprange": ("policy_loss", ("clip", *COUPLED)),
    "gamma": ("advantage_estimator", ("gae", "reinforce_plus_plus", "remax")),
    "lam": ("advantage_estimator", ("gae",)),
    "vf_coef": ("advantage_estimator", ("gae",)),
    "cliprange_value": ("advantage_estimator", ("gae",)),
}
_OF_V07 = ("cliprange", "gamma", "lam", "vf_coef", "cliprange_value")
"""Settings that a script of release 0.7 may leave as they are while it tries estimators: a warning, not an error."""
_AFTER_V07 = {
    *_ACTS_WITH, "advantage_estimator", "policy_loss", "whiten_advantages", "kl_in", "entropy_coef",
    "importance_correction", "positive_nll_coef", "loss_normalization",
} - {*_OF_V07}  # fmt: skip
"""Settings of the algorithm that release 0.7 does not have."""


def check_together(config: Any) -> None:
    """Refuse settings that cannot act together, and warn of those that have no effect.

    Warnings point at the line that made `config`, if its `__post_init__` called a method that called this.

    Args:
        config: a `PPOConfig`

    Raises:
        ValueError: a setting acts only with another value of a second one; the message names both.
    """
    changed = {f.name for f in fields(config) if getattr(config, f.name) != f.default}
    new = changed & _AFTER_V07
    if config.exact_v07 and (new or config.kl_penalty == "k3"):
        name = min(new, default="kl_penalty")
        raise ValueError(
            f"{name}={getattr(config, name)!r} with exact_v07=True: release 0.7 has no such setting; leave one of "
            "them out"
        )
    told = []
    for name, (other, values) in _ACTS_WITH.items():
        if name not in changed or getattr(config, other) in values:
            continue
        set_to, needed = f"{name}={getattr(config, name)!r}", " or ".join(map(repr, values))
        if name not in _OF_V07:
            raise ValueError(f"{set_to} acts only with {other}={needed}, but {other} is {getattr(config, other)!r}")
        told.append(f"{set_to} has no effect with {other}={getattr(config, other)!r}; it acts with {needed}")
    if config.loss_normalization == "constant" and config.loss_constant_length is None:
        raise ValueError('loss_normalization="constant" needs loss_constant_length, the longest response in tokens')
    if config.kl_in == "loss" and config.kl_penalty == "full":
        raise ValueError(
            'kl_penalty="full" with kl_in="loss" would need the whole distributions of both models in every '
            'mini-batch; take "k3" or "mse", whose gradients have the same mean for samples of the policy'
        )
    if config.kl_in == "loss" and config.kl_penalty == "kl" and config.init_kl_coef:
        told.append(
            'kl_in="loss" with kl_penalty="kl": the gradient of logprob - ref_logprob is 0 on average, so this '
            'penalty holds nothing back; take "k3" or "mse"'
        )
    if config.policy_loss == "gspo" and config.cliprange >= 0.05:
        told.append(
            'policy_loss="gspo" clips the geometric mean of the ratios of a whole response, and '
            f"cliprange={config.cliprange:g} hardly ever does; its authors take cliprange=3e-4, cliprange_high=4e-4"
        )
    for message in told:
        warnings.warn(message, UserWarning, stacklevel=5)
