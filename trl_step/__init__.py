"""The step API of reinforcement learning for language models: generate, score, `trainer.step(...)`."""

from typing import Any

from trl_step.absent import no_such_name
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
    setup_chat_format,
)
from trl_step.trainer import (
    DataCollatorForCompletionOnlyLM,
    DPOConfig,
    DPOTrainer,
    IterativeSFTTrainer,
    ModelConfig,
    PPOConfig,
    PPOTrainer,
    PPOv2Config,
    PPOv2Trainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    ScriptArguments,
    SFTConfig,
    SFTTrainer,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)

__version__ = "0.1.0"

__all__ = [
    "DPOConfig",
    "DPOTrainer",
    "DataCollatorForCompletionOnlyLM",
    "IterativeSFTTrainer",
    "ModelConfig",
    "RewardConfig",
    "RewardTrainer",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "setup_chat_format",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BestOfNSampler",
    "PPOConfig",
    "PPOTrainer",
    "PPOv2Config",
    "PPOv2Trainer",
    "RLOOConfig",
    "RLOOTrainer",
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


def __getattr__(name: str) -> Any:
    raise no_such_name(name)
