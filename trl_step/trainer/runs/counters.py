"""How far a run has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


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
