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
    "DDPOTrainer": "TRL 0.11.4 itself: diffusion models are not trained here",
    "DefaultDDPOStableDiffusionPipeline": "TRL 0.11.4 itself: diffusion models are not trained here",
    "AlignPropTrainer": "TRL 0.11.4 itself: diffusion models are not trained here",
}
"""Name -> what to use instead."""


def no_such_name(name: str) -> Exception:
    """The error for a name that `trl_step` does not have.

    An ImportError if there is something to say: `from trl_step import name` shows the message of no other.
    """
    if name in INSTEAD:
        return ImportError(f"trl_step has no {name}; use {INSTEAD[name]}", name="trl_step")
    return AttributeError(f"module 'trl_step' has no attribute {name!r}")
