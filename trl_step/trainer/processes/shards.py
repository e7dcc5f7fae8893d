"""This process's part of trees whose tensors are spread over processes (FSDP2), and the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor


def own_part(tree: Any) -> Any:
    """`tree` with the part of each tensor that this process holds; it shares memory with the whole."""
    if isinstance(tree, DTensor):
        return tree.to_local()
    if isinstance(tree, dict):
        return {key: own_part(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(own_part(item) for item in tree)
    return tree


def spread_state(state_dict: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict from its `own_part`: what has the shape of its parameter is spread like it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {key: _spread(value, parameters[index]) for key, value in values.items()}
        for index, values in state_dict["state"].items()
    }
    return {**state_dict, "state": state}


def _spread(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.to_local().shape:  # a counter
        return value
    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
