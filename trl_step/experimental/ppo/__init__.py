"""`PPOConfig` and `PPOTrainer` of TRL 0.12 to 1.9: PPO with `train()`; and the models that TRL has here since 0.28."""

from trl_step.experimental.ppo.ppo_config import PPOConfig
from trl_step.experimental.ppo.ppo_trainer import PPOTrainer
from trl_step.models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PreTrainedModelWrapper,
)

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
]
