"""`PPOConfig` and `PPOTrainer` of TRL 0.12 to 1.9: PPO with `train()`."""

from trl_step.experimental.ppo.ppo_config import PPOConfig
from trl_step.experimental.ppo.ppo_trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer"]
