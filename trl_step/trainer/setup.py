"""What a trainer makes of its arguments when it is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from transformers import PreTrainedTokenizerBase

from trl_step.algorithms.kl import AdaptiveKLController, FixedKLController
from trl_step.models import PreTrainedModelWrapper
from trl_step.models.adapters import without_adapter
from trl_step.models.sharding import start_fsdp
from trl_step.sampling.local import padding_id
from trl_step.trainer.batches.layout import Layout
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.accelerate_state import detach, make_accelerator
from trl_step.trainer.reports import trackers
from trl_step.trainer.runs.data_loader import positioned
from trl_step.trainer.updates import deepspeed
from trl_step.trainer.updates.on_device import WaitlessUpdater, may_decide_on_device
from trl_step.trainer.updates.updater import Updater

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

LOGGED_COLUMNS = frozenset(("label", "query", "response"))
"""Columns of a data set that the model does not read, but scripts and logs do."""


def start_accelerator(config: PPOConfig, is_encoder_decoder: bool, is_peft_model: bool) -> Accelerator:
    """What the settings ask for, with its trackers open; the run-time fields of `config` are filled in.

    Raises:
        ValueError: `use_habana`, but the device is another one.
    """
    of_project: Any = config.project_kwargs  # dictionaries, once the configuration has read what a shell gave
    of_accelerator: Any = config.accelerator_kwargs
    accelerator = make_accelerator(config.trackers, of_project, of_accelerator)
    if config.use_habana and accelerator.device.type != "hpu":
        raise ValueError(f"use_habana=True, but accelerate chose the device {accelerator.device}, not hpu")
    config.world_size = accelerator.num_processes
    config.global_backward_batch_size = config.backward_batch_size * config.world_size
    config.global_batch_size = config.batch_size * config.world_size
    config.is_encoder_decoder = is_encoder_decoder
    config.is_peft_model = is_peft_model
    trackers.start(accelerator, config)
    return accelerator


def make_layout(config: PPOConfig, tokenizer: PreTrainedTokenizerBase, is_encoder_decoder: bool) -> Layout:
    """How queries and responses are padded."""
    return Layout(
        is_encoder_decoder,
        padding_id(tokenizer),
        # differs from v0.7: on the right whatever the tokenizer says, where no position depends on the padding
        tokenizer.padding_side if config.exact_v07 else "right",
        config.pad_max_len if config.pad_for_acceleration else None,
        config.exact_v07,
    )


def reference_context(model: PreTrainedModelWrapper, config: PPOConfig) -> Callable[[], Any]:
    """Inside what this gives, the PEFT model `model` is its own reference."""
    if config.exact_v07:  # the base model, also where training starts from an adapter
        return partial(without_adapter, model.pretrained_model)
    return model.reference_adapter


def make_optimizer(parameters: list[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """Adam over `parameters`, fused where the device and the dtype have such a kernel.

    Raises:
        ValueError: there is nothing to train.
    """
    if not parameters:
        raise ValueError("model has no parameter with requires_grad=True; nothing could be trained")
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    except RuntimeError:
        return torch.optim.Adam(parameters, lr=learning_rate)


def make_kl_controller(config: PPOConfig) -> AdaptiveKLController | FixedKLController:
    """The controller that `adap_kl_ctrl` asks for."""
    coefficient: Any = config.init_kl_coef  # checked by the configuration: not None where it is used
    if config.adap_kl_ctrl:
        target: Any = config.target
        horizon: Any = config.horizon
        return AdaptiveKLController(coefficient, target, horizon)
    return FixedKLController(coefficient)


def make_updater(trainer: PPOTrainer) -> Updater:
    """What makes the trainer's updates; on an accelerator, one for which the host need not wait."""
    accelerator, model, optimizer, config = trainer.accelerator, trainer.model, trainer.optimizer, trainer.config
    waits = accelerator.device.type == "cpu" or not may_decide_on_device(accelerator, model, optimizer, config)
    return (Updater if waits else WaitlessUpdater)(accelerator, model, optimizer, trainer.model_params, config)


def prepare(trainer: PPOTrainer) -> None:
    """Place everything on the device and let accelerate wrap what is trained. The reference is never wrapped, but
    sharded where the policy is."""
    accelerator = trainer.accelerator
    if deepspeed.uses_deepspeed(accelerator):
        deepspeed.configure(accelerator, trainer.config)
        trainer.ref_model = None if trainer.ref_model is None else deepspeed.unshared(trainer.ref_model, trainer.model)
    trainer.model, trainer.optimizer, trainer.dataloader, trainer.lr_scheduler = accelerator.prepare(
        trainer.model, trainer.optimizer, trainer.dataloader, trainer.lr_scheduler
    )
    detach(accelerator, trainer.optimizer, trainer.lr_scheduler, trainer.dataloader)
    trainer.dataloader = positioned(trainer.dataloader, accelerator.non_blocking)
    if trainer.ref_model is not None:
        trainer.ref_model = place_reference(trainer.ref_model, trainer.current_device)
    if deepspeed.uses_deepspeed(accelerator):
        deepspeed.begin(trainer)
    if accelerator.is_fsdp2:
        shard_with_fsdp(trainer)


def place_reference(reference: Any, device: torch.device) -> Any:
    """The reference in eval mode on `device`, unless its layers were placed when it was loaded."""
    placed = getattr(reference, "is_sequential_parallel", False)
    quantized = getattr(reference.pretrained_model, "quantization_method", None)
    return (reference if placed or quantized else reference.to(device)).eval()


def shard_with_fsdp(trainer: PPOTrainer) -> None:
    """Shard the reference as accelerate has sharded the policy, and make both ready for passes of their parts."""
    trainer.model_params = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    models = [trainer.model]
    if trainer.ref_model is not None:
        trainer.ref_model = fsdp2_prepare_model(trainer.accelerator, trainer.ref_model).eval()
        models.append(trainer.ref_model)
    for model in models:
        start_fsdp(model, trainer.is_encoder_decoder, trainer.current_device)


def without_unused_columns(dataset: datasets.Dataset, model: torch.nn.Module) -> datasets.Dataset:
    """`dataset` with the columns that the model's forward takes, and `LOGGED_COLUMNS`."""
    used = LOGGED_COLUMNS.union(inspect.signature(model.forward).parameters)
    return dataset.remove_columns([column for column in dataset.column_names if column not in used])
