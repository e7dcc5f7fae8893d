"""The optimizer that a trainer makes for itself, and what makes its updates."""

from __future__ import annotations

from typing import Any

import torch

from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.updates.on_device import OnDeviceUpdater, may_decide_on_device
from trl_step.trainer.updates.updater import Updater


def make_optimizer(model: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
    """Adam over what trains of `model`, fused if the device and the dtype have such a kernel.

    Raises:
        ValueError: there is nothing to train.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter with requires_grad=True; nothing could be trained")
    try:
        return torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    except RuntimeError:
        return torch.optim.Adam(parameters, lr=learning_rate)


def make_updater(
    processes: Processes, model: Any, optimizer: Any, parameters: list[torch.nn.Parameter], config: PPOConfig
) -> Updater:
    """What makes the updates; on an accelerator, one for which the host need not wait."""
    waits = processes.device.type == "cpu" or not may_decide_on_device(processes.accelerator, model, optimizer, config)
    return (Updater if waits else OnDeviceUpdater)(processes, model, optimizer, parameters, config)
