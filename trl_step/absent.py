"""Layer 1: names of TRL's later releases that are not here, and what to use instead."""

from __future__ import annotations

_SAMPLED = "PPOTrainer, for which your own loop samples and scores several responses to each query"
_PAIRS = "DPOTrainer on pairs, with loss_type 'sigmoid', 'hinge', 'ipo' or 'kto_pair'"
INSTEAD = {
    "GRPOTrainer": f'{_SAMPLED}, with PPOConfig(advantage_estimator="grpo")',
    "GRPOConfig": 'PPOConfig(advantage_estimator="grpo"), with PPOTrainer',
    "OnlineDPOTrainer": f"{_SAMPLED}, each scored by comparison",
    "NashMDTrainer": f"{_SAMPLED}, each scored by comparison",
    "XPOTrainer": f"{_SAMPLED}, each scored by comparison",
    "KTOTrainer": _PAIRS,
    "ORPOTrainer": _PAIRS,
    "CPOTrainer": _PAIRS,
    "BCOTrainer": _PAIRS,
    "AlignPropTrainer": "DDPOTrainer, which needs no gradient of the reward",
    "AlignPropConfig": "DDPOConfig, with DDPOTrainer",
}
"""Name -> what to use instead."""


def no_such_name(package: str, name: str) -> Exception:
    """The error for a name that `package`, which is `trl_step`, does not have.

    An ImportError if there is something to say: `from trl_step import name` shows the message of no other.
    """
    if name in INSTEAD:
        return ImportError(f"{package} has no {name}; use {INSTEAD[name]}", name=package)
    return AttributeError(f"module {package!r} has no attribute {name!r}")
