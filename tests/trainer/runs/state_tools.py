"""Everything that a step may change, as bytes that can be compared."""

from __future__ import annotations

import pickle
import random
from typing import Any

import numpy as np
import torch

from trl_step import PPOTrainer


def _bytes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if value.numel() else b""
    if isinstance(value, dict):
        return {key: _bytes(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_bytes(item) for item in value]
    return value


def weights_and_optimizer(trainer: PPOTrainer) -> dict[str, Any]:
    """Parameters and the whole optimizer state, momentum and counters included."""
    return {
        "weights": {name: _bytes(p.unsqueeze(-1)) for name, p in trainer.model.named_parameters()},
        "optimizer": {
            key: {name: _bytes(value.unsqueeze(-1)) for name, value in state.items()}
            for key, state in trainer.optimizer.state_dict()["state"].items()
        },
    }


def random_streams() -> dict[str, Any]:
    """Of Python, NumPy and torch."""
    return {
        "python": pickle.dumps(random.getstate()),
        "numpy": pickle.dumps(np.random.get_state()),
        "torch": _bytes(torch.get_rng_state()),
    }


def everything(trainer: PPOTrainer) -> dict[str, Any]:
    """What a refused step must leave alone, bit for bit."""
    return {
        **weights_and_optimizer(trainer),
        **random_streams(),
        "gradients": [p.grad is None or not bool(p.grad.any()) for p in trainer.model.parameters()],
        "modes": [module.training for module in trainer.model.modules()],
        "kl coefficient": trainer.kl_ctl.value,
        "running moments": trainer.running.state_dict(),
        "scheduler": None if trainer.lr_scheduler is None else trainer.lr_scheduler.state_dict(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of the parts that differ."""
    return [name for name in before if before[name] != after[name]]
