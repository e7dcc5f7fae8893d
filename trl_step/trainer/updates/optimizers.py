"""The optimizer of a trainer, whether it fits the policy, and what makes the updates."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer

from trl_step.models.critic import PolicyWithCritic
from trl_step.models.notices import warn_user
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.updates.on_device import OnDeviceUpdater, may_decide_on_device
from trl_step.trainer.updates.updater import Updater


def make_optimizer(model: Any, learning_rate: float, value_learning_rate: float | None = None) -> torch.optim.Optimizer:
    """Adam over what trains of `model`, fused if the device and the dtype have such a kernel.

    Args:
        model: the policy.
        value_learning_rate: of the value head or the critic, which are then the second of two groups.

    Raises:
        ValueError: there is nothing to train.
    """
    parameters: Any = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("model has no parameter with requires_grad=True; nothing could be trained")
    if value_learning_rate is not None:
        of_values = {id(parameter) for parameter in model.value_parameters()}
        parameters = [
            {"params": [p for p in parameters if id(p) not in of_values]},
            {"params": [p for p in parameters if id(p) in of_values], "lr": value_learning_rate},
        ]
    return fused_if_possible(torch.optim.Adam, parameters, lr=learning_rate)


def fused_if_possible(kind: type[torch.optim.Adam], parameters: Any, **options: Any) -> torch.optim.Optimizer:
    """Adam or AdamW of torch, fused if the device and the dtype have such a kernel."""
    try:
        return kind(parameters, fused=True, **options)
    except RuntimeError:
        return kind(parameters, **options)


def check_optimizer(optimizer: Any, scheduler: Any, model: Any, config: PPOConfig) -> None:
    """Whether a user's optimizer trains `model`, and a scheduler sets the rate of that optimizer.

    Warns if the optimizer lacks some of what could be trained.

    Args:
        optimizer: torch's, or one that accelerate has prepared; None is the trainer's own.
        scheduler: of `optimizer`, or None.
        model: the policy, before accelerate has it.
        config: whose learning rate of the values a user's optimizer cannot follow.

    Raises:
        ValueError: no trainable parameter of `model`, or none of a separate critic, is in `optimizer`; `scheduler` is
            that of another optimizer.
        TypeError: `optimizer` is a class.
    """
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer is the class {optimizer.__name__}: make one, such as {optimizer.__name__}(model.parameters(), "
            "lr=1e-5), or leave it out"
        )
    if optimizer is not None and config.value_learning_rate is not None:
        raise ValueError(
            f"value_learning_rate={config.value_learning_rate:g} acts on the optimizer that the trainer makes; leave "
            "it out, and give your optimizer a parameter group with that rate for model.v_head or the value_model"
        )
    scheduled = None if scheduler is None else getattr(scheduler, "optimizer", None)
    if scheduled is not None and (optimizer is None or _inner(scheduled) is not _inner(optimizer)):
        raise ValueError(
            "lr_scheduler sets the learning rate of another optimizer, so that of this trainer would never change: "
            "make the scheduler with the optimizer that you pass as optimizer="
        )
    held = held_by(optimizer)
    if held is None:
        return
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    missing = [name for name, parameter in trainable if id(parameter) not in held]
    if len(missing) == len(trainable):
        raise ValueError(
            f"optimizer holds none of the {len(trainable)} trainable parameters of model, so nothing would be trained: "
            "make it from the parameters of the model that you pass here, after its adapters were added, such as "
            "torch.optim.Adam(p for p in model.parameters() if p.requires_grad)"
        )
    of_values = [p for p in model.value_parameters() if p.requires_grad]
    if isinstance(model, PolicyWithCritic) and not any(id(parameter) in held for parameter in of_values):
        raise ValueError(
            "optimizer holds no parameter of value_model, so its values would stay as they are: make it from the "
            "parameters of both models, or leave optimizer out"
        )
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warn_user(
            f"{len(missing)} of the {len(trainable)} trainable parameters of model are not in the optimizer and stay "
            f"as they are: {', '.join(missing[:3])}{more}. Add them to it, or freeze them with requires_grad_(False), "
            "which saves the time for their gradients."
        )


def held_by(optimizer: Any) -> set[int] | None:
    """The `id` of each parameter in the groups of `optimizer`; None if it does not show them."""
    groups: Iterable[dict[str, Any]] | None = getattr(optimizer, "param_groups", None)
    return None if groups is None else {id(parameter) for group in groups for parameter in group["params"]}


def _inner(optimizer: Any) -> Any:
    """What accelerate has wrapped, several times at most."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer


def make_updater(
    processes: Processes, model: Any, optimizer: Any, parameters: list[torch.nn.Parameter], config: PPOConfig
) -> Updater:
    """What makes the updates; on an accelerator, one for which the host need not wait."""
    waits = processes.device.type == "cpu" or not may_decide_on_device(processes.accelerator, model, optimizer, config)
    return (Updater if waits else OnDeviceUpdater)(processes, model, optimizer, parameters, config)
