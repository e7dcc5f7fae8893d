"""All random streams of a process: read them, and set them back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def capture() -> dict[str, Any]:
    """Where Python's, NumPy's and torch's streams stand, torch's on the CPU and on every device of this process."""
    numbers: Any = np.random.get_state(legacy=False)
    streams = {
        "python": random.getstate(),
        "numpy": {**numbers, "state": {**numbers["state"], "key": numbers["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
    }
    device = _device_module()
    if device is None:
        return streams
    others = [device.get_rng_state(index) for index in _other_devices()]
    return {**streams, "device": device.get_rng_state(), "other devices": others}


def restore(streams: dict[str, Any]) -> None:
    """Set the streams to what `capture` gave. A device's stream is left alone where there was none, or is none."""
    random.setstate(streams["python"])
    key = np.array(streams["numpy"]["state"]["key"], dtype=np.uint32)
    np.random.set_state({**streams["numpy"], "state": {**streams["numpy"]["state"], "key": key}})
    torch.set_rng_state(streams["torch"])
    device = _device_module()
    if device is None or "device" not in streams:
        return
    device.set_rng_state(streams["device"])
    for index, stream in zip(_other_devices(), streams.get("other devices", ()), strict=False):
        device.set_rng_state(stream, index)


def _other_devices() -> list[int]:
    """Those that the process sees beside its current one; layers may be spread over them."""
    own = torch.accelerator.current_device_index()
    return [index for index in range(torch.accelerator.device_count()) if index != own]


def _device_module() -> Any:
    """torch's module for the accelerator, such as `torch.cuda`; None on a CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if accelerator is None else torch.get_device_module(accelerator)
