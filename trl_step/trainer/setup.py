"""What a trainer makes of its arguments when it is built."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import datasets
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_model

from trl_step.models.sharding import start_fsdp
from trl_step.ppo.kl import AdaptiveKLController, FixedKLController
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.update import Updater
from trl_step.trainer.waitless_update import WaitlessUpdater, may_decide_on_device

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

LOGGED_COLUMNS = frozenset(("label", "query", "response"))
"""Columns of a data set that the model does not read, but scripts and logs do."""


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
