"""Names and modules that a running script looks for where the packages of its day had them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from trl_step.port.aliases import AliasLoader
from trl_step.port.asking import is_asked_by_library
from trl_step.port.moved import MOVED, MOVED_MODULES, Place

Report = Callable[[str, str], None]


@contextmanager
def old_names(report: Report) -> Iterator[None]:
    """Inside, a script finds the names of `MOVED` and the modules of `MOVED_MODULES`; each is reported.

    What a module has today is found first, so nothing that is there is replaced.
    """
    names: defaultdict[str, dict[str, Place]] = defaultdict(dict)
    for (module, name), place in MOVED.items():
        names[module][name] = place
    for old, new in MOVED_MODULES.items():
        parent, _, name = old.rpartition(".")
        if parent in names:
            names[parent][name] = (new, "")
    finder = MovedFinder(report)
    sys.meta_path.append(finder)
    try:
        with ExitStack() as stack:
            for module, moved in names.items():
                if importlib.util.find_spec(module.partition(".")[0]) is not None:
                    stack.enter_context(_with_names(importlib.import_module(module), moved, report))
            yield
    finally:
        sys.meta_path.remove(finder)
        finder.undo()


@contextmanager
def _with_names(module: ModuleType, names: Mapping[str, Place], report: Report) -> Iterator[None]:
    """Inside, `module` has these names as well."""
    before: Any = type(module)

    class WithOldNames(before):  # type: ignore[misc]
        def __getattr__(self, name: str) -> Any:
            if name not in names or is_asked_by_library():
                of_today = getattr(super(), "__getattr__", None) or vars(self).get("__getattr__")
                if of_today is not None:
                    return of_today(name)
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            found = _at(names[name], f"{self.__name__}.{name}")
            report(f"{self.__name__}.{name}", ".".join(filter(None, names[name])))
            return found

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return by_name(self)

    module.__class__ = WithOldNames
    try:
        yield
    finally:
        module.__class__ = before


def by_name(module: ModuleType) -> tuple[Any, ...]:
    """How a module of another class is pickled, as datasets does with the modules that a function uses."""
    return importlib.import_module, (module.__name__,)


def _at(place: Place, old: str) -> Any:
    """What is at `place` today.

    Raises:
        ImportError: it is in a package that is not installed.
    """
    package = place[0].partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"{old} is in the package {package} today: pip install {package}")
    module = importlib.import_module(place[0])
    return getattr(module, place[1]) if place[1] else module


class MovedFinder(MetaPathFinder):
    """Finds the modules of `MOVED_MODULES`, if nothing else does."""

    def __init__(self, report: Report) -> None:
        self.report = report

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = MOVED_MODULES.get(fullname)
        if new is None:
            return None
        self.report(fullname, new)
        return ModuleSpec(fullname, AliasLoader(new), is_package=True)

    def undo(self) -> None:
        """Forget the modules that were found."""
        for old in MOVED_MODULES:
            sys.modules.pop(old, None)
            parent, _, name = old.rpartition(".")
            if parent in sys.modules:
                vars(sys.modules[parent]).pop(name, None)
