"""Layer 3: value-head wrappers, the reference model, checkpoint files and adapters, diffusion pipelines."""

from trl_step.models.modeling_base import PreTrainedModelWrapper, create_reference_model
from trl_step.models.modeling_sd_base import (
    DDPOPipelineOutput,
    DDPOSchedulerOutput,
    DDPOStableDiffusionPipeline,
    DefaultDDPOStableDiffusionPipeline,
)
from trl_step.models.modeling_value_head import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    ValueHead,
)
from trl_step.models.utils import setup_chat_format

SUPPORTED_ARCHITECTURES = (AutoModelForCausalLMWithValueHead, AutoModelForSeq2SeqLMWithValueHead)

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
    "setup_chat_format",
]
