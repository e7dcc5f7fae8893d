"""Layer 1: which optional packages and accelerators this process can use.

Every function answers without importing the package it asks about, unless the answer depends on the hardware.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Union, get_args

from packaging.version import Version

TrackerName = Literal["wandb", "tensorboard", "trackio", "mlflow", "comet_ml", "aim", "swanlab", "clearml", "dvclive"]
"""The trackers of accelerate."""
if TYPE_CHECKING:
    TrackerNames = Union[str, Sequence[str]]
    """One, one of your own that accelerate knows, or several; a command line takes one of accelerate's."""
else:
    TrackerNames = TrackerName


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _is_at_least(package: str, minimum: str) -> bool:
    return Version(version(package)) >= Version(minimum)


def is_peft_available() -> bool:
    """Whether `peft` is installed."""
    return _is_installed("peft")


def is_wandb_available() -> bool:
    """Whether `wandb` is installed."""
    return _is_installed("wandb")


def is_tensorboard_available() -> bool:
    """Whether `tensorboard` or `tensorboardX` is installed."""
    return _is_installed("tensorboard") or _is_installed("tensorboardX")


def require_tracker(name: str) -> None:
    """Raise an error if `name` is no tracker of accelerate, or its package is not installed.

    Raises:
        ValueError: accelerate has no tracker of that name, neither of its own nor by `register_tracker_class`.
        ImportError: the tracker's package is missing.
    """
    if name not in get_args(TrackerName):
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        if name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"log_with={name!r} must be None or one of {', '.join(get_args(TrackerName))}")
    elif not (is_tensorboard_available() if name == "tensorboard" else _is_installed(name)):
        raise ImportError(f'log_with="{name}" needs the package {name}: pip install {name}')


def is_rich_available() -> bool:
    """Whether `rich` is installed."""
    return _is_installed("rich")


def is_diffusers_available() -> bool:
    """Whether `diffusers` is installed."""
    return _is_installed("diffusers")


def is_torchvision_available() -> bool:
    """Whether `torchvision` is installed."""
    return _is_installed("torchvision")


def is_unsloth_available() -> bool:
    """Whether `unsloth` is installed."""
    return _is_installed("unsloth")


def is_deepspeed_available() -> bool:
    """Whether `deepspeed` is installed."""
    return _is_installed("deepspeed")


def is_bitsandbytes_available() -> bool:
    """Whether `bitsandbytes` is installed and there is a CUDA device to quantize on."""
    import torch

    return _is_installed("bitsandbytes") and torch.cuda.is_available()


def is_xpu_available() -> bool:
    """Whether an Intel GPU can be used."""
    from accelerate.utils import is_xpu_available as accelerate_sees_xpu

    return bool(accelerate_sees_xpu())


def is_npu_available() -> bool:
    """Whether an Ascend NPU can be used."""
    if not _is_installed("torch_npu"):
        return False
    from accelerate.utils import is_npu_available as accelerate_sees_npu

    return bool(accelerate_sees_npu())


def is_accelerate_greater_20_0() -> bool:
    """Whether accelerate is 0.20.0 or newer."""
    return _is_at_least("accelerate", "0.20.0")


def is_torch_greater_2_0() -> bool:
    """Whether torch is 2.0 or newer."""
    return _is_at_least("torch", "2.0")


def is_transformers_greater_than(minimum: str) -> bool:
    """Whether transformers is newer than `minimum`, such as "4.33.0"."""
    return Version(version("transformers")) > Version(minimum)


def is_hub_dataset(thing: Any) -> bool:
    """Whether it is a `datasets.Dataset`; somebody has imported datasets if it is."""
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(thing, datasets.Dataset)


def require_peft(wanted_by: str) -> None:
    """Raise ImportError that names `wanted_by` and says what to install, if peft is missing."""
    if not is_peft_available():
        raise ImportError(f"{wanted_by} needs the package peft: pip install peft")


def require_diffusers(wanted_by: str) -> None:
    """Raise ImportError that names `wanted_by` and says what to install, if diffusers is missing."""
    if not is_diffusers_available():
        raise ImportError(f"{wanted_by} needs the package diffusers: pip install diffusers")
