"""Layer 1: names of a package that are imported when they are first used, so that importing it costs nothing.

A package says twice where a name comes from: in its table `HOMES`, which is read while it runs, and under
`TYPE_CHECKING` for type checkers; `tests/test_lazy.py` compares the two and `__all__`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any


def _no_such_name(package: str, name: str) -> Exception:
    return AttributeError(f"module {package!r} has no attribute {name!r}")


def lazy_names(
    package: str,
    homes: Mapping[str, Sequence[str]],
    no_such_name: Callable[[str, str], Exception] = _no_such_name,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package. Its modules are found as attributes without an import, too.

    Args:
        package: its dotted name.
        homes: module -> names of the package that are imported from it.
        no_such_name: the error for a name that is not there, from the package and the name.
    """
    home_of = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name in home_of:
            value = getattr(importlib.import_module(home_of[name]), name)
            setattr(sys.modules[package], name, value)  # the next use does not come here
            return value
        if name.startswith("_") or find_spec(f"{package}.{name}") is None:
            raise no_such_name(package, name)
        return importlib.import_module(f"{package}.{name}")

    def names() -> list[str]:
        module = sys.modules[package]
        modules = [found.name for found in pkgutil.iter_modules(module.__path__) if not found.name.startswith("_")]
        return sorted({*vars(module), *home_of, *modules})

    return get, names
