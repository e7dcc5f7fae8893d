"""Layer 3: value-head wrappers, the reference model, checkpoint files and adapters, diffusion pipelines."""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.models.modeling_base": (
        "PreTrainedModelWrapper",
        "create_reference_model",
    ),
    "trl_step.models.modeling_sd_base": (
        "DDPOPipelineOutput",
        "DDPOSchedulerOutput",
        "DDPOStableDiffusionPipeline",
        "DefaultDDPOStableDiffusionPipeline",
    ),
    "trl_step.models.modeling_value_head": (
        "SUPPORTED_ARCHITECTURES",
        "AutoModelForCausalLMWithValueHead",
        "AutoModelForSeq2SeqLMWithValueHead",
        "ValueHead",
    ),
    "trl_step.models.utils": ("prepare_deepspeed", "prepare_fsdp", "setup_chat_format", "unwrap_model_for_generation"),
}

if TYPE_CHECKING:
    from trl_step.models.modeling_base import PreTrainedModelWrapper, create_reference_model
    from trl_step.models.modeling_sd_base import (
        DDPOPipelineOutput,
        DDPOSchedulerOutput,
        DDPOStableDiffusionPipeline,
        DefaultDDPOStableDiffusionPipeline,
    )
    from trl_step.models.modeling_value_head import (
        SUPPORTED_ARCHITECTURES,
        AutoModelForCausalLMWithValueHead,
        AutoModelForSeq2SeqLMWithValueHead,
        ValueHead,
    )
    from trl_step.models.utils import (
        prepare_deepspeed,
        prepare_fsdp,
        setup_chat_format,
        unwrap_model_for_generation,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

__all__ = [
    "SUPPORTED_ARCHITECTURES",
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "DDPOPipelineOutput",
    "DDPOSchedulerOutput",
    "DDPOStableDiffusionPipeline",
    "DefaultDDPOStableDiffusionPipeline",
    "PreTrainedModelWrapper",
    "ValueHead",
    "create_reference_model",
    "prepare_deepspeed",
    "prepare_fsdp",
    "setup_chat_format",
    "unwrap_model_for_generation",
]
