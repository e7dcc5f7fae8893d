"""What an installed package has, from its source: importing torch to answer would take seconds."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

DYNAMIC = ("sys.modules", "globals()", "__getattr__", "import *")
"""A source with one of these may have names and modules that it does not spell out."""


def module_exists(module: str) -> bool:
    """Whether there is a module of this dotted name."""
    source = _source(module)
    if source is None and _is_dynamic(module.rpartition(".")[0]):
        return _imported(module) is not None
    return source is not None


def has_name(module: str, name: str) -> bool:
    """Whether `from module import name` works, for a module that exists."""
    if name in _bound_names(module) or _source(f"{module}.{name}") is not None:
        return True
    if not _is_dynamic(module):
        return False
    found = _imported(module)
    # `dir` first: asking a lazy module for a name imports what it comes from
    return found is not None and (name in dir(found) or hasattr(found, name) or module_exists(f"{module}.{name}"))


def _is_dynamic(module: str) -> bool:
    """Whether only an import shows all of it; never for trl_step, whose lazy names are under TYPE_CHECKING."""
    source = _source(module) or ""
    return module.partition(".")[0] != "trl_step" and any(word in source for word in DYNAMIC)


def _imported(module: str) -> object | None:
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


@cache
def _source(module: str) -> str | None:
    """The text of the module's file, "" if it is not of Python; None if there is no such module."""
    package, *names = module.split(".")
    spec = importlib.util.find_spec(package) if package else None
    for name in names:
        if spec is None or spec.submodule_search_locations is None:
            return None
        folders = [str(folder) for folder in spec.submodule_search_locations]  # transformers gives paths once imported
        spec = PathFinder.find_spec(f"{spec.name}.{name}", folders)
    if spec is None:
        return None
    is_python = spec.origin is not None and spec.origin.endswith(".py")
    return Path(str(spec.origin)).read_text(encoding="utf-8") if is_python else ""


@cache
def _bound_names(module: str) -> frozenset[str]:
    """Names that the module's own statements bind, those under `if` and `try` included."""
    return frozenset(_bound_by(ast.parse(_source(module) or "").body))


def _bound_by(statements: Sequence[ast.AST]) -> Iterator[str]:
    for node in statements:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                yield node.id
        else:
            yield from _bound_by(list(ast.iter_child_nodes(node)))
