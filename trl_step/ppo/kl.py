"""Legacy import path: the code is in `trl_step.algorithms.kl`."""

from trl_step.algorithms.kl import KL_PENALTIES, AdaptiveKLController, FixedKLController, kl_penalty

__all__ = ["KL_PENALTIES", "AdaptiveKLController", "FixedKLController", "kl_penalty"]
