"""Rewards of finished episodes, from the user's own function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from trl_step.core import in_float64
from trl_step.environment.text_history import TextHistory


class RewardError(ValueError):
    """The reward function's answer cannot be used. The finished episodes are in `histories`: nothing is lost."""

    def __init__(self, message: str, histories: Sequence[TextHistory]) -> None:
        super().__init__(message)
        self.histories = list(histories)


def set_rewards(
    histories: Sequence[TextHistory],
    texts: Sequence[str],
    reward_fn: Callable[..., Sequence[Any]] | None,
    reward_kwargs: dict[str, Any],
) -> None:
    """Set `reward` of each episode to what `reward_fn(texts, **reward_kwargs)` returns for its text.

    Raises:
        RewardError: wrong number of rewards, or one that is not a finite number.
    """
    if reward_fn is None or not histories:
        return
    answer = reward_fn(list(texts), **reward_kwargs)
    if isinstance(answer, (Mapping, str)) or not isinstance(answer, Iterable):
        raise RewardError(f"reward_fn returned {answer!r:.80}; it must return one reward per text", histories)
    try:
        rewards = list(answer)
    except TypeError:  # a tensor without dimensions
        raise RewardError(f"reward_fn returned {answer!r:.80}; it must return one reward per text", histories) from None
    if len(rewards) != len(histories):
        # differs from v0.7: it continued with the rewards it got
        raise RewardError(f"reward_fn returned {len(rewards)} rewards for {len(histories)} texts", histories)
    for i, reward in enumerate(rewards):
        if not is_finite(reward):
            raise RewardError(f"reward_fn returned {reward!r} for episode {i}; rewards are numbers", histories)
    for history, reward in zip(histories, rewards, strict=True):
        history.reward = reward


def is_finite(reward: Any) -> bool:
    """Whether `reward` is a finite number, or a non-empty tensor of finite numbers."""
    try:
        numbers = in_float64(torch.as_tensor(reward))
        return numbers.numel() > 0 and bool(torch.isfinite(numbers).all())
    except (TypeError, ValueError, RuntimeError):
        return False
