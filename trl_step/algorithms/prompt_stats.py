"""Mean and deviation of rewards, kept for each prompt by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np


class PerPromptStatTracker:
    """Rewards as advantages: less the mean of their prompt's last rewards, over their deviation.

    Args:
        buffer_size: how many rewards of a prompt are remembered.
        min_count: a prompt with fewer is compared with all rewards of the call.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.stats: dict[str, deque] = {}

    def update(self, prompts: Sequence[str], rewards: Sequence[float] | np.ndarray) -> np.ndarray:
        """Remember `rewards` [B] of `prompts` [B] and return their advantages, floating [B]."""
        names, values = np.array(prompts), np.asarray(rewards, dtype=np.result_type(np.asarray(rewards), np.float32))
        advantages = np.empty_like(values)
        for prompt in np.unique(names):
            here = names == prompt
            seen = self.stats.setdefault(str(prompt), deque(maxlen=self.buffer_size))
            seen.extend(values[here])
            basis = values if len(seen) < self.min_count else np.array(seen)
            advantages[here] = (values[here] - basis.mean()) / (basis.std() + 1e-6)
        return advantages

    def get_stats(self) -> dict[str, dict[str, Any]]:
        """`mean`, `std` and `count` of each prompt."""
        return {
            prompt: {"mean": np.mean(seen), "std": np.std(seen), "count": len(seen)}
            for prompt, seen in self.stats.items()
        }
