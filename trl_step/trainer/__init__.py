"""Floor 4: the configuration and the trainers. Legacy import path of their names."""

from trl_step.trainer.base import BaseTrainer
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.ppo_trainer import PPOTrainer
from trl_step.trainer.utils import (
    AdaptiveKLController,
    FixedKLController,
    RunningMoments,
    disable_dropout_in_model,
)

__all__ = [
    "AdaptiveKLController",
    "BaseTrainer",
    "FixedKLController",
    "PPOConfig",
    "PPOTrainer",
    "RunningMoments",
    "disable_dropout_in_model",
]
