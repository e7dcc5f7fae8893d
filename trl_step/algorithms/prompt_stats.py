"""Rewards normalized to advantages: minus a mean, divided by a deviation; of the batch, or of each prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BATCH_EPSILON = 1e-8
PROMPT_EPSILON = 1e-6


def batch_advantages(rewards: Sequence[float] | np.ndarray) -> np.ndarray:
    """(r - mean) / (std + 1e-8) over `rewards` [B], float64 [B]; equal rewards give zeros."""
    values = np.asarray(rewards, dtype=np.float64)
    # differs from v0.7: rounding of the mean made advantages near 1 of equal rewards
    if np.ptp(values) == 0:
        return np.zeros_like(values)
    return (values - values.mean()) / (values.std() + BATCH_EPSILON)


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
            advantages[here] = (values[here] - basis.mean()) / (basis.std() + PROMPT_EPSILON)
        return advantages

    def get_stats(self) -> dict[str, dict[str, Any]]:
        """`mean`, `std` and `count` of each prompt."""
        return {
            prompt: {"mean": np.mean(seen), "std": np.std(seen), "count": len(seen)}
            for prompt, seen in self.stats.items()
        }

    def state_dict(self) -> dict[str, list[float]]:
        """The remembered rewards of each prompt."""
        return {prompt: [float(reward) for reward in seen] for prompt, seen in self.stats.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Take over what `state_dict` gave."""
        self.stats = {prompt: deque(seen, maxlen=self.buffer_size) for prompt, seen in state.items()}
