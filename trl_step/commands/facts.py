"""`trl_step env`: what a bug report should say about the machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import trl_step

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "tyro", "peft",
            "diffusers", "bitsandbytes", "deepspeed", "wandb", "tensorboard")  # fmt: skip
VARIABLES = ("CUDA_VISIBLE_DEVICES", "WORLD_SIZE", "RANK", "LOCAL_RANK", "OMP_NUM_THREADS", "OMP_WAIT_POLICY",
             "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_FSDP",
             "ACCELERATE_USE_DEEPSPEED", "PYTORCH_CUDA_ALLOC_CONF", "WANDB_MODE")  # fmt: skip
"""Only these environment variables are shown: others may hold keys and names."""


def facts() -> dict[str, str]:
    """Name and value of each fact; packages that are not installed and variables that are not set are left out."""
    place, home = Path(trl_step.__path__[0]), Path.home()
    if place.is_relative_to(home) and home != Path(home.anchor):
        place = Path("~", place.relative_to(home))
    return {
        "trl_step": f"{trl_step.__version__} in {place}",
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "processors": f"{os.cpu_count()}, {torch.get_num_threads()} threads",
        "accelerators": ", ".join(_accelerators()) or "none",
        **{name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _accelerators() -> Iterator[str]:
    """Kind, name and memory of each device that torch sees."""
    if not torch.accelerator.is_available():
        return
    kind = torch.accelerator.current_accelerator()
    for index in range(torch.accelerator.device_count()):
        if kind is not None and kind.type == "cuda":
            device = torch.cuda.get_device_properties(index)
            yield f"cuda:{index} {device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
        else:
            yield f"{kind}:{index}"
