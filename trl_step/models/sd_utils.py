"""Legacy import path: names of LoRA weights, between PEFT and diffusers. The code is that of diffusers."""

from __future__ import annotations

from typing import Any

from trl_step.import_utils import require_diffusers

__all__ = [  # noqa: F822
    "DIFFUSERS_OLD_TO_DIFFUSERS",
    "DIFFUSERS_STATE_DICT_MAPPINGS",
    "KEYS_TO_ALWAYS_REPLACE",
    "PEFT_TO_DIFFUSERS",
    "StateDictType",
    "convert_state_dict",
    "convert_state_dict_to_diffusers",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_diffusers(f"{__name__}.{name}")
    from diffusers.utils import state_dict_utils

    return getattr(state_dict_utils, name)
