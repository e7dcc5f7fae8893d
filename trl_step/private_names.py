"""Layer 1: what this package takes from others under names that they keep to themselves, as there is no public way.

Seen in transformers 5.23, accelerate 1.15 and torch 2.13. `tests/test_private_names.py` fails if one is gone, and if
such a name is used elsewhere. What a subclass of `transformers.Trainer` calls of its base is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from trl_step.replacing import replaced

# --- transformers ------------------------------------------------------------------------------------------------


def attention_kernel(model: Any) -> str:
    """The name of the attention function that a transformers model calls, such as "sdpa"; "" if it has none."""
    return getattr(model.config, "_attn_implementation", None) or ""


def checkpoint_function(layer: Any) -> Callable[..., Any]:
    """What a layer with gradient checkpointing calls to run its forward and forget the activations."""
    return layer._gradient_checkpointing_func  # type: ignore[no-any-return]


def set_checkpoint_function(layer: Any, function: Callable[..., Any]) -> None:
    """Let a layer with gradient checkpointing call `function`."""
    layer._gradient_checkpointing_func = function


def undivided_modules(model: Any) -> list[str]:
    """Classes of a transformers model's modules that stay on one device."""
    return list(model._no_split_modules or [])


def model_classes(auto_class: Any, config: Any) -> tuple[Any, ...]:
    """The classes that an auto class may build for `config`, none for code that comes with a checkpoint; another class
    builds itself."""
    if not hasattr(auto_class, "_model_mapping"):
        return (auto_class,)
    if type(config) not in auto_class._model_mapping:
        return ()
    classes = auto_class._model_mapping[type(config)]
    return tuple(classes) if isinstance(classes, (list, tuple)) else (classes,)


def not_reported(model_class: Any, pattern: str) -> AbstractContextManager[None]:
    """Inside, `from_pretrained` of a class says nothing of unexpected tensors whose names match `pattern`."""
    name = "_keys_to_ignore_on_load_unexpected"
    return replaced(model_class, name, [*(getattr(model_class, name) or []), pattern])


# --- accelerate --------------------------------------------------------------------------------------------------


def put_in_force(singleton: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """Let all of the process see `state` of a class such as `AcceleratorState`; returns what it saw before."""
    before = dict(singleton._shared_state)
    singleton._shared_state.clear()
    singleton._shared_state.update(state)
    return before


def forget_model(accelerator: Any, model: Any) -> None:
    """Let an accelerator drop a model that it has prepared, which it would keep as long as it exists."""
    accelerator._models = [one for one in accelerator._models if one is not model]


# --- torch, DeepSpeed --------------------------------------------------------------------------------------------


def leaves_steps_out(optimizer: Any) -> bool:
    """Whether a torch optimizer takes `found_inf` and leaves its step out by itself, as the fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def remove_zero3_hooks(offload: Any) -> None:
    """Take away the hooks by which ZeRO-3 gathers each layer's weights for its pass, and releases them."""
    offload._remove_module_hooks()
    offload.forward_hooks.clear()
    offload.backward_hooks.clear()
