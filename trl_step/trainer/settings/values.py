"""What each setting of `PPOConfig` may be, whatever the others are."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any, get_args

from trl_step.algorithms.advantages.estimators import AdvantageEstimator
from trl_step.algorithms.importance import ImportanceCorrection
from trl_step.algorithms.kl import KL_PENALTIES
from trl_step.algorithms.losses.policy import PolicyLoss
from trl_step.algorithms.losses.tokens import LossNormalization

_INF = math.inf
_RANGES: dict[str, tuple[float, float, bool]] = {
    "steps": (1, _INF, True),
    "learning_rate": (0, _INF, True),
    "init_kl_coef": (0, _INF, True),
    "target": (0, _INF, False),
    "horizon": (0, _INF, False),
    "gamma": (0, 1, True),
    "lam": (0, 1, True),
    "cliprange": (0, _INF, True),
    "cliprange_value": (0, _INF, True),
    "vf_coef": (0, _INF, True),
    "batch_size": (1, _INF, True),
    "mini_batch_size": (1, _INF, True),
    "gradient_accumulation_steps": (1, _INF, True),
    "ppo_epochs": (1, _INF, True),
    "max_grad_norm": (0, _INF, False),
    "target_kl": (0, _INF, False),
    "compare_steps": (1, _INF, True),
    "ratio_threshold": (0, _INF, False),
    "score_clip": (0, _INF, False),
    "temperature": (0, _INF, False),
    "forward_tokens": (1, _INF, True),
    "generation_tokens": (1, _INF, True),
    "pad_max_len": (2, _INF, True),
    "save_every": (1, _INF, True),
    "keep_last": (1, _INF, True),
    "num_sample_generations": (0, _INF, True),
    "cliprange_high": (0, _INF, True),
    "dual_clip": (1, _INF, False),
    "cispo_bound": (0, _INF, False),
    "dppo_delta": (0, 1, True),
    "loss_constant_length": (1, _INF, True),
    "entropy_coef": (0, _INF, True),
    "value_learning_rate": (0, _INF, True),
    "value_warmup_steps": (0, _INF, True),
    "value_lam": (0, 1, True),
    "length_adaptive_alpha": (0, _INF, False),
    "positive_nll_coef": (0, _INF, True),
}
"""setting: (lowest, highest, whether the lowest itself is allowed)"""
_PAIRS: dict[str, bool] = {"sapo_temperatures": True, "importance_bounds": False}
"""pairs of numbers, and whether the second may be below the first"""
_CHOICES: dict[str, tuple[Any, ...]] = {
    "kl_penalty": KL_PENALTIES,
    "loss_normalization": get_args(LossNormalization),
    "advantage_estimator": get_args(AdvantageEstimator),
    "policy_loss": get_args(PolicyLoss),
    "group_scale": ("std", "batch", "none"),
    "kl_in": ("reward", "loss"),
    "gae_level": ("token", "turn"),
    "importance_correction": (None, *get_args(ImportanceCorrection)),
    **dict.fromkeys(("whiten_advantages", "padding_free", "optimize_device_cache"), (None, True, False)),
}
_FLAGS = (
    "remove_unused_columns",
    "adap_kl_ctrl",
    "early_stopping",
    "use_score_scaling",
    "use_score_norm",
    "whiten_rewards",
    "gradient_checkpointing",
    "exact_v07",
    "share_prompts",
    "pad_for_acceleration",
    "use_habana",
    "log_arrays",
    "progress_bar",
    "offload_reference",
)
_WHOLE_NUMBERS = (
    "steps",
    "batch_size",
    "forward_batch_size",
    "mini_batch_size",
    "gradient_accumulation_steps",
    "ppo_epochs",
    "compare_steps",
    "forward_tokens",
    "generation_tokens",
    "pad_max_len",
    "save_every",
    "keep_last",
    "num_sample_generations",
    "loss_constant_length",
    "value_warmup_steps",
)


def check_values(config: Any) -> None:
    """Refuse a value that no setting of its name may have.

    Pairs become tuples of two numbers, and numbers of NumPy and torch those of Python.

    Args:
        config: a `PPOConfig`

    Raises:
        ValueError: a value is out of range; the message names the setting, the value and what is allowed.
    """
    for name in {*_RANGES, *_WHOLE_NUMBERS}:
        value = getattr(config, name)
        if not isinstance(value, (int, float)) and hasattr(value, "item"):  # numbers of NumPy and torch
            setattr(config, name, value.item())
    for name in _WHOLE_NUMBERS:
        value = getattr(config, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name}={value!r} must be a whole number")
    for name in _FLAGS:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r} must be True or False")
    optional = {f.name for f in fields(config) if f.default is None}
    optional |= set() if config.adap_kl_ctrl else {"target", "horizon"}
    for name, (low, high, closed) in _RANGES.items():
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not (low <= value if closed else low < value) or not value <= high or value == _INF:
            allowed = f"a finite number {'>=' if closed else '>'} {low}" + (f" and <= {high}" * (high < _INF))
            is_text = "; this is text: YAML takes 1e-5 for text and 1.0e-5 for a number" * isinstance(value, str)
            raise ValueError(f"{name}={value!r} must be {allowed}{is_text}")
    for name, allowed_ones in _CHOICES.items():
        if getattr(config, name) not in allowed_ones:
            raise ValueError(f"{name}={getattr(config, name)!r} must be one of {', '.join(map(repr, allowed_ones))}")
    for name, any_order in _PAIRS.items():
        _check_pair(config, name, any_order)
    seed = config.seed
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32):
        raise ValueError(f"seed={seed!r} must be None or a whole number from 0 to 2**32 - 1")


def _check_pair(config: Any, name: str, any_order: bool) -> None:
    pair = getattr(config, name)
    if pair is None and not any_order:
        return
    try:
        if all(isinstance(part, str) for part in pair):  # "1,1.05", which HfArgumentParser cuts into characters
            pair = "".join(pair).replace(",", " ").split()
        low, high = (float(number) for number in pair)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}={pair!r} must be two numbers") from error
    if any_order and not (0 < low < _INF and 0 < high < _INF):
        raise ValueError(f"{name}={pair!r} must be two finite numbers above 0")
    if not any_order and not (0 <= low <= high < _INF):
        raise ValueError(f"{name}={pair!r} must be (low, high) with 0 <= low <= high, both finite")
    setattr(config, name, (low, high))
