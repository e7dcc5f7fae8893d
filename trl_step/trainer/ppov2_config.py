"""`PPOv2Config`: the settings of PPO with `train()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Optional

from trl_step.trainer.on_policy.config import OnPolicyConfig


@dataclass(init=False)
class PPOv2Config(OnPolicyConfig):
    """`OnPolicyConfig` and what PPO with `train()` needs: the fields of TRL 0.9 to 0.11, and those that came later.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields below, those of `OnPolicyConfig`, and the other arguments of
            `transformers.TrainingArguments`

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
    """

    vf_coef: float = 0.1
    """weight of the value loss"""
    cliprange_value: float = 0.2
    """the value prediction is clipped to the old one ± this"""
    gamma: float = 1.0
    """discount per token"""
    lam: float = 0.95
    """lambda of the generalized advantage estimate"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """with d = logprob - ref_logprob: `k1` d; `k3` exp(-d) + d - 1"""
    model_adapter_name: Optional[str] = None
    """adapter of a PeftModel that is trained; None: the active one"""
    ref_adapter_name: Optional[str] = None
    """adapter of the same PeftModel that is the reference; None: none of them, or the one that training starts from"""

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        super().__init__(output_dir, **arguments)

    def check(self) -> None:
        """Raise a ValueError for a value that is out of range."""
        super().check()
        for name in ("vf_coef", "cliprange_value"):
            self._check(name, self._is_number(name) and getattr(self, name) >= 0, "a finite number >= 0")
        for name in ("gamma", "lam"):
            self._check(name, self._is_number(name) and 0 <= getattr(self, name) <= 1, "a number from 0 to 1")
        self._check("kl_estimator", self.kl_estimator in ("k1", "k3"), "'k1' or 'k3'")
