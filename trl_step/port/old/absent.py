"""Stand-ins for trainers that are not here, so that a package which derives classes from them can be imported."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from trl_step.absent import INSTEAD, names_of_module, no_such_name
from trl_step.port.aliases import NEW, new_name
from trl_step.port.moved import MOVED
from trl_step.replacing import replaced

Report = Callable[[str, str], None]


@contextmanager
def absent_classes(report: Report) -> Iterator[None]:
    """Inside, the modules that a script imports get a class for each name of `INSTEAD`; each is reported.

    It can be a base class; making an object is an ImportError. For the script itself the import is the error.
    """

    def found(package: str, name: str) -> type:
        report(f"{package}.{name}", f"a class of which no object can be made; use {INSTEAD[name]}")
        return stand_in(name)

    finder = AbsentFinder(found)
    sys.meta_path.insert(0, finder)
    try:
        with ExitStack() as stack:
            for package in (NEW, f"{NEW}.trainer"):
                module = importlib.import_module(package)
                stack.enter_context(replaced(module, "__getattr__", _with_stand_ins(module, found)))
            yield
    finally:
        sys.meta_path.remove(finder)
        for parent, name in finder.made:
            vars(sys.modules[parent]).pop(name, None)


@cache
def stand_in(name: str) -> type:
    """The class in place of an absent one."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise no_such_name(NEW, name)

    return type(name, (), {"__new__": refuse, "__init__": refuse, "__module__": NEW})


def _with_stand_ins(module: Any, found: Callable[[str, str], type]) -> Callable[[str], Any]:
    of_today = module.__getattr__

    def get(name: str) -> Any:
        if name in INSTEAD and not _is_asked_by_script():
            return found(module.__name__, name)
        try:
            return of_today(name)
        except ImportError as error:
            if (module.__name__, name) in MOVED:  # `old_names` has it
                raise AttributeError(name) from error
            raise

    return get


def _is_asked_by_script() -> bool:
    """Whether the script itself asks for what the calling function answers, and not a module that it imports."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("importlib.", f"{NEW}.")):
        frame = frame.f_back  # the import system asks first
    return frame.f_globals.get("__name__") == "__main__"


class AbsentFinder(MetaPathFinder):
    """Finds the modules of TRL that had these classes alone: `trl.trainer.kto_trainer`."""

    def __init__(self, found: Callable[[str, str], type]) -> None:
        self.found = found
        self.made: list[tuple[str, str]] = []
        """Parent and name of each module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_name(fullname)
        if new == fullname or not names_of_module(new) or _is_asked_by_script():
            return None
        parent, _, name = new.rpartition(".")
        self.made.append((parent, name))
        return ModuleSpec(fullname, StandInLoader(self.found), is_package=True)


class StandInLoader(Loader):
    """Makes an empty module that has the classes."""

    def __init__(self, found: Callable[[str, str], type]) -> None:
        self.found = found

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            if name in INSTEAD:
                return self.found(module.__name__, name)
            raise AttributeError(f"{module.__name__} is not part of trl_step: there is no {name}")

        module.__dict__["__getattr__"] = get
