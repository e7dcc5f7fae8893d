"""Layer 5: the configuration and the trainers. Legacy import path of their names."""

from typing import TYPE_CHECKING

from trl_step.absent import no_such_attribute
from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.trainer.base": ("BaseTrainer",),
    "trl_step.trainer.ddpo_config": ("DDPOConfig",),
    "trl_step.trainer.ddpo_trainer": ("DDPOTrainer",),
    "trl_step.trainer.dpo_trainer": ("DPOTrainer",),
    "trl_step.trainer.iterative_sft_trainer": ("IterativeSFTTrainer",),
    "trl_step.trainer.model_config": (
        "ModelConfig",
        "ScriptArguments",
    ),
    "trl_step.trainer.ppo_config": ("PPOConfig",),
    "trl_step.trainer.ppo_trainer": ("PPOTrainer",),
    "trl_step.trainer.ppov2_config": ("PPOv2Config",),
    "trl_step.trainer.ppov2_trainer": ("PPOv2Trainer",),
    "trl_step.trainer.reward_config": ("RewardConfig",),
    "trl_step.trainer.reward_trainer": ("RewardTrainer",),
    "trl_step.trainer.rloo_config": ("RLOOConfig",),
    "trl_step.trainer.rloo_trainer": ("RLOOTrainer",),
    "trl_step.trainer.sft_trainer": ("SFTTrainer",),
    "trl_step.trainer.text.configs": (
        "DPOConfig",
        "SFTConfig",
    ),
    "trl_step.trainer.text.rich_progress": ("RichProgressCallback",),
    "trl_step.trainer.utils": (
        "AdaptiveKLController",
        "ConstantLengthDataset",
        "DataCollatorForCompletionOnlyLM",
        "FixedKLController",
        "RunningMoments",
        "compute_accuracy",
        "disable_dropout_in_model",
        "get_kbit_device_map",
        "get_peft_config",
        "get_quantization_config",
        "peft_module_casting_to_bf16",
    ),
}

if TYPE_CHECKING:
    from trl_step.trainer.base import BaseTrainer
    from trl_step.trainer.ddpo_config import DDPOConfig
    from trl_step.trainer.ddpo_trainer import DDPOTrainer
    from trl_step.trainer.dpo_trainer import DPOTrainer
    from trl_step.trainer.iterative_sft_trainer import IterativeSFTTrainer
    from trl_step.trainer.model_config import ModelConfig, ScriptArguments
    from trl_step.trainer.ppo_config import PPOConfig
    from trl_step.trainer.ppo_trainer import PPOTrainer
    from trl_step.trainer.ppov2_config import PPOv2Config
    from trl_step.trainer.ppov2_trainer import PPOv2Trainer
    from trl_step.trainer.reward_config import RewardConfig
    from trl_step.trainer.reward_trainer import RewardTrainer
    from trl_step.trainer.rloo_config import RLOOConfig
    from trl_step.trainer.rloo_trainer import RLOOTrainer
    from trl_step.trainer.sft_trainer import SFTTrainer
    from trl_step.trainer.text.configs import DPOConfig, SFTConfig
    from trl_step.trainer.text.rich_progress import RichProgressCallback
    from trl_step.trainer.utils import (
        AdaptiveKLController,
        ConstantLengthDataset,
        DataCollatorForCompletionOnlyLM,
        FixedKLController,
        RunningMoments,
        compute_accuracy,
        disable_dropout_in_model,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
        peft_module_casting_to_bf16,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES, no_such_attribute)

__all__ = [
    "AdaptiveKLController",
    "BaseTrainer",
    "ConstantLengthDataset",
    "DDPOConfig",
    "DDPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "DataCollatorForCompletionOnlyLM",
    "FixedKLController",
    "IterativeSFTTrainer",
    "ModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "PPOv2Config",
    "PPOv2Trainer",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "RichProgressCallback",
    "RunningMoments",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "compute_accuracy",
    "disable_dropout_in_model",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "peft_module_casting_to_bf16",
]
