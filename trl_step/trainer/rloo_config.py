"""`RLOOConfig`: the settings of `RLOOTrainer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from trl_step.trainer.on_policy.config import OnPolicyConfig


@dataclass(init=False)
class RLOOConfig(OnPolicyConfig):
    """`OnPolicyConfig` and what REINFORCE with a leave-one-out baseline needs: the fields of TRL 0.9 to 0.21.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields below, those of `OnPolicyConfig`, and the other arguments of
            `transformers.TrainingArguments`

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
    """

    rloo_k: int = 2
    """answers to each prompt"""
    normalize_reward: bool = False
    """give the scores of a batch mean 0 and deviation 1, over all processes"""
    reward_clip_range: float = 10.0
    """with `normalize_reward`, limit the scores to ± this"""
    normalize_advantage: bool = False
    """give the advantages of a batch mean 0 and deviation 1, over all processes"""
    token_level_kl: bool = False
    """subtract the KL penalty from the reward of each token; the sum over an answer, which counts, is the same"""

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        for name in ("vf_coef", "cliprange_value", "gamma", "lam"):  # fields of 0.9, which nothing there read
            arguments.pop(name, None)
        super().__init__(output_dir, **arguments)

    def check(self) -> None:
        """Raise a ValueError for a value that is out of range."""
        super().check()
        self._check("rloo_k", isinstance(self.rloo_k, int) and self.rloo_k >= 2, "a whole number >= 2")
        above_0 = self._is_number("reward_clip_range") and self.reward_clip_range > 0
        self._check("reward_clip_range", above_0, "a finite number > 0")
