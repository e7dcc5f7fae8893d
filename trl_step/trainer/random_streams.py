"""All random streams of a process: read them, and set them back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """Where Python's, NumPy's and torch's streams stand, torch's on the CPU and on the current device."""
    numbers: Any = np.random.get_state(legacy=False)
    streams = {
        "python": random.getstate(),
        "numpy": {**numbers, "state": {**numbers["state"], "key": numbers["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
    }
    device = _device_module()
    return streams if device is None else {**streams, "device": device.get_rng_state()}


def restore(streams: dict[str, Any]) -> None:
    """Set the streams to what `capture` gave. A device's stream is left alone where there was none, or is none."""
    random.setstate(streams["python"])
    key = np.array(streams["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**streams["numpy"], "state": {**streams["numpy"]["state"], "key": key}})
    torch.set_rng_state(streams["torch"])
    device = _device_module()
    if device is not None and "device" in streams:
        device.set_rng_state(streams["device"])


def _device_module() -> Any:
    """torch's module for the accelerator, such as `torch.cuda`; None on a CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None else torch.get_device_module(accelerator)
