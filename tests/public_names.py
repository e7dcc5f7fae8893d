"""What is public: the names in `__all__` of the packages that users import, and what a few modules define."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

PACKAGES = (
    "trl_step", "trl_step.environment", "trl_step.environment.adapters", "trl_step.extras", "trl_step.models",
    "trl_step.sampling", "trl_step.trainer", "trl_step.port", "trl_step.experimental.ppo",
)  # fmt: skip
"""Where public names come from; the first one that has a name is where it is imported from."""
MODULES = ("trl_step.core", "trl_step.trainer.callbacks", "trl_step.extras.all_scores", "trl_step.extras.doctor")
"""Modules whose own classes and functions are public, too."""


def public_objects() -> dict[str, tuple[str, Any]]:
    """Name -> (package to import it from, object), for classes, functions, modules and constants."""
    found: dict[str, tuple[str, Any]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found.setdefault(name, (package, getattr(module, name)))
    for package in MODULES:
        found |= {name: (package, thing) for name, thing in members(package).items() if name not in found}
    return found


def members(package: str) -> dict[str, Any]:
    """The public classes and functions of a module: its own, and those in its `__all__`."""
    module = importlib.import_module(package)
    named = getattr(module, "__all__", ())
    return {
        name: thing
        for name, thing in vars(module).items()
        if (inspect.isfunction(thing) or inspect.isclass(thing))
        and not name.startswith("_")
        and (thing.__module__ == package or name in named)
    }


def documented(thing: Any) -> Iterator[tuple[str, Any]]:
    """Of a public object and of the methods that our code gives it, the name and the object with the docstring."""
    yield getattr(thing, "__name__", type(thing).__name__), thing
    for base in thing.__mro__ if inspect.isclass(thing) else ():
        if not base.__module__.startswith("trl_step"):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(function) and function.__module__.startswith("trl_step"):
                yield f"{base.__name__}.{name}", function
