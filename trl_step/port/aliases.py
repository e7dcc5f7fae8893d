"""`import trl` gives trl_step: every `trl.<name>` is the same module object as `trl_step.<name>`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from trl_step.absent import no_such_module

OLD, NEW = "trl", "trl_step"
ELSEWHERE = {
    "trl.trainer.dpo_config": "trl_step.trainer.text.configs",
    "trl.trainer.sft_config": "trl_step.trainer.text.configs",
    "trl.data_utils": "trl_step.port.data_utils",
}
"""Modules of TRL that have another name here."""


def new_name(module: str) -> str:
    """ "trl.core" -> "trl_step.core"; other names are unchanged."""
    if module in ELSEWHERE:
        return ELSEWHERE[module]
    return NEW + module[len(OLD) :] if module == OLD or module.startswith(OLD + ".") else module


class AliasFinder(MetaPathFinder):
    """Finds `trl` and its submodules."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raises ModuleNotFoundError for a module of TRL that has no counterpart: a `trl` on disk is never used."""
        name = new_name(fullname)
        if name == fullname:
            return None
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"{fullname} is not part of trl_step: {no_such_module(name)}", name=fullname)
        return ModuleSpec(fullname, AliasLoader(name), is_package=True)


class AliasLoader(Loader):
    """Returns a module that is already loaded."""

    def __init__(self, name: str) -> None:
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self.module = importlib.import_module(self.name)
        self.spec = self.module.__spec__
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # the import system has set the alias's spec


@contextmanager
def trl_is_trl_step() -> Iterator[None]:
    """Inside, `trl` is an alias; afterwards `sys.meta_path` and the `trl` entries of `sys.modules` are as before."""
    finder = AliasFinder()
    before = _take_old_modules()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_old_modules()
        sys.modules.update(before)
        for module in ELSEWHERE:
            parent, _, name = module.rpartition(".")
            vars(sys.modules.get(new_name(parent), finder)).pop(name, None)


def _take_old_modules() -> dict[str, ModuleType]:
    """Remove the `trl` entries from `sys.modules` and return them."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if new_name(name) != name}
