"""No test runs on a Mac's GPU, which accelerate and transformers take by themselves."""

from __future__ import annotations

import os

import torch


def stay_on_the_cpu() -> None:
    """For this process and, as far as accelerate chooses the device, for those that it starts."""
    if torch.backends.mps.is_available():
        torch.backends.mps.is_available = lambda: False
        os.environ["ACCELERATE_USE_CPU"] = "true"
