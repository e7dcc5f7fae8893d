"""Other libraries from wheels that lie in a folder, imported without being installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from records import Section

OPTIONAL = ("datasets", "tyro", "rich")
"""Requirements of TRL that a step and a generation do not use: where they are missing, something stands in for them."""


def from_wheel(section: Section, wheel: str) -> bool:
    """Put the wheel `name-version` on the path; if it is not there this is reported."""
    found = [] if section.wheels is None else sorted(section.wheels.glob(f"{wheel}-*.whl"))
    if not found:
        section.absent(wheel, f"no {wheel}-*.whl in --wheels")
        return False
    folder = tempfile.mkdtemp()  # read until the process ends
    with zipfile.ZipFile(found[0]) as archive:
        archive.extractall(folder)
    sys.path.insert(0, folder)
    missing = tuple(name for name in OPTIONAL if importlib.util.find_spec(name) is None)
    sys.meta_path.append(StandInFinder(missing))
    return True


def trl_0_11(section: Section) -> Any:
    """The classes of TRL 0.11.4, or None."""
    if not from_wheel(section, "trl-0.11.4"):
        return None
    parts = {"trl.trainer.ppo_config": "PPOConfig", "trl.trainer.ppo_trainer": "PPOTrainer",
             "trl.models.modeling_value_head": "AutoModelForCausalLMWithValueHead"}  # fmt: skip
    return SimpleNamespace(**{name: getattr(importlib.import_module(place), name) for place, name in parts.items()})


class StandIn(ModuleType):
    """A module that has every name: a class that can be made, called and subscribed."""

    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(
            name, (), {"__init__": lambda *_, **__: None, "__class_getitem__": classmethod(lambda _, kind: kind)}
        )


class StandInFinder(MetaPathFinder, Loader):
    """Finds modules of `packages`."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.packages = packages

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] in self.packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
