"""The trainer's settings in DeepSpeed's configuration, and its engine's own way of stepping."""

from __future__ import annotations

import copy
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from trl_step.models import sharding
from trl_step.trainer.ppo_config import PPOConfig


def uses_deepspeed(accelerator: Accelerator) -> bool:
    """Whether DeepSpeed holds the optimizer."""
    return accelerator.distributed_type == DistributedType.DEEPSPEED


def unshared(reference: Any, policy: Any) -> Any:
    """`reference` with parameters of its own: ZeRO-3 would partition those that it shares with the policy, and then
    the reference could not run by itself."""
    own = {id(parameter) for parameter in policy.parameters()}
    if any(id(parameter) in own for parameter in reference.parameters()):
        return copy.deepcopy(reference)
    return reference


def configure(accelerator: Accelerator, config: PPOConfig) -> None:
    """Write what `PPOConfig` says over what the file for `accelerate launch` says; before `accelerator.prepare`.

    Raises:
        ValueError: a setting that DeepSpeed's engine leaves no room for.
    """
    if config.forward_tokens is not None:
        raise ValueError(
            f"forward_tokens={config.forward_tokens}: DeepSpeed joins the gradients of a mini-batch's parts before "
            "it is known whether the mini-batch is skipped; set mini_batch_size lower, with gradient_accumulation_steps"
        )
    if config.value_warmup_steps:
        raise ValueError(
            f"value_warmup_steps={config.value_warmup_steps}: DeepSpeed's engine steps on all gradients, so the policy "
            "would move on the value loss; leave it out, or train with DDP or FSDP2"
        )
    accelerator.deepspeed_plugin.deepspeed_config |= {
        "train_micro_batch_size_per_gpu": config.mini_batch_size,
        "gradient_accumulation_steps": 1,  # the trainer says when to step
        "gradient_clipping": config.max_grad_norm or 0.0,
    }


def begin(engine: Any) -> bool:
    """Prepare a model for passes of its parts, after `accelerator.prepare`; whether ZeRO-3 has partitioned it."""
    partitioned = sharding.is_sharded(engine.module)
    if partitioned:
        sharding.ZERO3_ENGINES[engine.module] = engine
    return partitioned


def check_skip(accelerator: Accelerator, config: PPOConfig) -> None:
    """Raise if a mini-batch is left out of an accumulated update, which DeepSpeed's engine cannot do."""
    if uses_deepspeed(accelerator) and config.gradient_accumulation_steps > 1:
        raise RuntimeError(
            f"a mini-batch's ratio exceeds ratio_threshold={config.ratio_threshold:g}, and DeepSpeed cannot leave one "
            f"mini-batch out of an update of gradient_accumulation_steps={config.gradient_accumulation_steps}: set "
            "that to 1, lower learning_rate, or raise ratio_threshold"
        )
