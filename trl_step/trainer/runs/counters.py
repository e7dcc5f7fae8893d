"""How far a run has come, and the best that it has reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Counters:
    """Steps of a run, those before it was resumed included."""

    steps_done: int = 0
    """calls of `step` that made an update"""
    current_step: int = 0
    """number of the last step that was logged"""

    def state_dict(self) -> dict[str, int]:
        """Both numbers."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take over what `state_dict` gave."""
        self.steps_done, self.current_step = state["steps_done"], state["current_step"]


@dataclass
class BestScore:
    """What `push_to_hub_if_best_kwargs` compares with."""

    highest_reward: torch.Tensor = field(default_factory=lambda: torch.tensor(-float("inf")))
    """0-d, float, on the CPU: the highest mean score of the batches that were compared"""
    compare_step: int = 0
    """batches seen"""

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"reward": self.highest_reward, "compare_step": self.compare_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.highest_reward, self.compare_step = state["reward"], state["compare_step"]
