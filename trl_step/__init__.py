"""The step API of reinforcement learning for language models: generate, score, `trainer.step(...)`."""

from typing import TYPE_CHECKING

from trl_step.absent import no_such_attribute
from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.core": ("set_seed",),
    "trl_step.environment": (
        "TextEnvironment",
        "TextHistory",
    ),
    "trl_step.extras": ("BestOfNSampler",),
    "trl_step.import_utils": (
        "is_bitsandbytes_available",
        "is_diffusers_available",
        "is_npu_available",
        "is_peft_available",
        "is_wandb_available",
        "is_xpu_available",
    ),
    "trl_step.models": (
        "AutoModelForCausalLMWithValueHead",
        "AutoModelForSeq2SeqLMWithValueHead",
        "DDPOPipelineOutput",
        "DDPOSchedulerOutput",
        "DDPOStableDiffusionPipeline",
        "DefaultDDPOStableDiffusionPipeline",
        "PreTrainedModelWrapper",
        "create_reference_model",
        "setup_chat_format",
    ),
    "trl_step.trainer": (
        "DataCollatorForCompletionOnlyLM",
        "DDPOConfig",
        "DDPOTrainer",
        "DPOConfig",
        "DPOTrainer",
        "IterativeSFTTrainer",
        "ModelConfig",
        "PPOConfig",
        "PPOTrainer",
        "PPOv2Config",
        "PPOv2Trainer",
        "RewardConfig",
        "RewardTrainer",
        "RichProgressCallback",
        "RLOOConfig",
        "RLOOTrainer",
        "ScriptArguments",
        "SFTConfig",
        "SFTTrainer",
        "get_kbit_device_map",
        "get_peft_config",
        "get_quantization_config",
    ),
}

if TYPE_CHECKING:
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
        DDPOPipelineOutput,
        DDPOSchedulerOutput,
        DDPOStableDiffusionPipeline,
        DefaultDDPOStableDiffusionPipeline,
        PreTrainedModelWrapper,
        create_reference_model,
        setup_chat_format,
    )
    from trl_step.trainer import (
        DataCollatorForCompletionOnlyLM,
        DDPOConfig,
        DDPOTrainer,
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
        RichProgressCallback,
        RLOOConfig,
        RLOOTrainer,
        ScriptArguments,
        SFTConfig,
        SFTTrainer,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES, no_such_attribute)

__version__ = "0.2.0"

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "BestOfNSampler",
    "DDPOConfig",
    "DDPOPipelineOutput",
    "DDPOSchedulerOutput",
    "DDPOStableDiffusionPipeline",
    "DDPOTrainer",
    "DPOConfig",
    "DPOTrainer",
    "DataCollatorForCompletionOnlyLM",
    "DefaultDDPOStableDiffusionPipeline",
    "IterativeSFTTrainer",
    "ModelConfig",
    "PPOConfig",
    "PPOTrainer",
    "PPOv2Config",
    "PPOv2Trainer",
    "PreTrainedModelWrapper",
    "RLOOConfig",
    "RLOOTrainer",
    "RewardConfig",
    "RewardTrainer",
    "RichProgressCallback",
    "SFTConfig",
    "SFTTrainer",
    "ScriptArguments",
    "TextEnvironment",
    "TextHistory",
    "create_reference_model",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "is_bitsandbytes_available",
    "is_diffusers_available",
    "is_npu_available",
    "is_peft_available",
    "is_wandb_available",
    "is_xpu_available",
    "set_seed",
    "setup_chat_format",
]
