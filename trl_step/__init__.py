"""The step API of reinforcement learning for language models: generate, score, `trainer.step(...)`."""

from trl_step.core import set_seed
from trl_step.environment import TextEnvironment, TextHistory
from trl_step.extras import BestOfNSampler
from trl_step.import_utils import (
    is_bitsandbytes_available,
    is_diffusers_available,
    is_npu_available,
    is_peft_available,
    is_wandb_available,
    is_xpu_available,
)
from trl_step.models import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    PreTrainedModelWrapper,
    create_reference_model,
)
from trl_step.trainer import PPOConfig, PPOTrainer

__version__ = "0.1.0"

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BestOfNSampler",
    "PPOConfig",
    "PPOTrainer",
    "PreTrainedModelWrapper",
    "TextEnvironment",
    "TextHistory",
    "create_reference_model",
    "is_bitsandbytes_available",
    "is_diffusers_available",
    "is_npu_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
    "set_seed",
]
