"""The interface that every step trainer has."""

from __future__ import annotations

from typing import Any


class BaseTrainer:
    """Holds the configuration; subclasses implement `step`, `loss` and `compute_rewards`."""

    accelerator: Any
    """the `accelerate.Accelerator` of this process"""
    tokenizer: Any
    """of trainers of language models"""

    def __init__(self, config: Any) -> None:
        self.config = config

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One update from the results of a rollout."""
        raise NotImplementedError(f"{type(self).__name__} must implement step")

    def loss(self, *args: Any) -> Any:
        """The losses of a mini-batch."""
        raise NotImplementedError(f"{type(self).__name__} must implement loss")

    def compute_rewards(self, *args: Any) -> Any:
        """The reward of every token."""
        raise NotImplementedError(f"{type(self).__name__} must implement compute_rewards")
