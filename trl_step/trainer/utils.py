"""Legacy import path: most of its names are defined elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from trl_step.algorithms.kl import AdaptiveKLController, FixedKLController
from trl_step.algorithms.prompt_stats import PerPromptStatTracker
from trl_step.algorithms.rewards import RunningMoments
from trl_step.core import count_mean_squares, sum_over_processes
from trl_step.data.collators import (
    DataCollatorForCompletionOnlyLM,
    DPODataCollatorWithPadding,
    RewardDataCollatorWithPadding,
    pad_to_length,
)
from trl_step.data.packing import ConstantLengthDataset
from trl_step.models.shortcuts.modes import disable_dropout_in_model
from trl_step.trainer.model_config import ModelConfig
from trl_step.trainer.reward_trainer import compute_accuracy
from trl_step.trainer.text.peft_setup import (
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
    peft_module_casting_to_bf16,
)
from trl_step.trainer.text.rich_progress import RichProgressCallback
from trl_step.trainer.text.text_trainer import trl_sanitze_kwargs_for_tagging

__all__ = [
    "AdaptiveKLController",
    "ConstantLengthDataset",
    "DPODataCollatorWithPadding",
    "DataCollatorForCompletionOnlyLM",
    "FixedKLController",
    "ModelConfig",
    "PerPromptStatTracker",
    "RewardDataCollatorWithPadding",
    "RichProgressCallback",
    "RunningMoments",
    "SIMPLE_CHAT_TEMPLATE",
    "SIMPLE_QUERY_CHAT_TEMPLATE",
    "SIMPLE_SFT_CHAT_TEMPLATE",
    "compute_accuracy",
    "disable_dropout_in_model",
    "exact_div",
    "get_global_statistics",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "neftune_post_forward_hook",
    "pad_to_length",
    "peft_module_casting_to_bf16",
    "trl_sanitze_kwargs_for_tagging",
]

SIMPLE_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""A chat template without special tokens: `User: ...`, an empty line, `Assistant: ...`."""
SIMPLE_QUERY_CHAT_TEMPLATE = "{% for message in messages %} {{ message['content'] }}{% endfor %}"
"""A chat template: a space and the text of each message."""
SIMPLE_SFT_CHAT_TEMPLATE = SIMPLE_QUERY_CHAT_TEMPLATE + "{{ eos_token }}"
"""The same with the end token, which a model learns to give."""


def exact_div(a: int, b: int, a_str: str = "", b_str: str = "", custom_error_message: str = "") -> int:
    """a / b if that is a whole number.

    Args:
        a_str, b_str: name the two in the message; a single one is the message itself, as in releases 0.9 to 0.11
        custom_error_message: before them

    Raises:
        ValueError: there is a remainder.
    """
    quotient, remainder = divmod(a, b)
    if remainder:
        names = f"{a_str}={a} is not a multiple of {b_str}={b}" if b_str else f"{a_str}: {a} / {b}"
        raise ValueError(f"{custom_error_message}: {names}".lstrip(": "))
    return quotient


@torch.no_grad()
def get_global_statistics(
    accelerator: Any, xs: torch.Tensor, mask: torch.Tensor | None = None, device: str | torch.device = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean, biased variance and count of the `xs` whose `mask` is 1, over all processes: three 0-d tensors."""
    xs, mask = xs.to(accelerator.device), None if mask is None else mask.to(accelerator.device)
    count, mean, squares = count_mean_squares(xs, mask, sum_over_processes(accelerator))
    return mean.to(device), (squares / count).to(device), count.to(device)
