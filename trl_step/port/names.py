"""Finds imported names that no longer exist, without running the script."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from typing import NamedTuple

from trl_step.absent import INSTEAD, no_such_module
from trl_step.port.aliases import new_name
from trl_step.port.lookup import has_name, module_exists
from trl_step.port.moved import BY_HAND, MOVED_IMPORTS, MOVED_MODULES

PACKAGES = ("trl_step", "transformers", "peft", "datasets", "accelerate", "diffusers", "huggingface_hub")


class Missing(NamedTuple):
    """An import in `line` that fails; `what` says why."""

    line: int
    what: str


def missing_names(data: bytes) -> list[Missing]:
    """Imports from trl and the packages it uses that fail today and that the kit cannot rewrite."""
    return sorted(_missing(ast.parse(data)))


def _missing(tree: ast.AST) -> Iterator[Missing]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = new_name(alias.name)
                if _is_ours(name) and name not in MOVED_MODULES and not module_exists(name):
                    yield Missing(node.lineno, no_such_module(name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and _is_ours(node.module):
            name = new_name(node.module)
            name = MOVED_MODULES.get(name, name)
            if not module_exists(name):
                yield Missing(node.lineno, no_such_module(name))
                continue
            for alias in node.names:
                if (name, alias.name) in MOVED_IMPORTS or alias.name == "*":
                    continue
                if not has_name(name, alias.name):
                    instead = BY_HAND.get((name, alias.name), "")
                    if alias.name in INSTEAD and _is_trl_step(name):
                        instead = f"use {INSTEAD[alias.name]}"
                    yield Missing(alias.lineno, f"{name} has no {alias.name}{'; ' * bool(instead)}{instead}")


def _is_ours(module: str) -> bool:
    package = new_name(module).partition(".")[0]
    return package in PACKAGES and importlib.util.find_spec(package) is not None


def _is_trl_step(module: str) -> bool:
    return module.partition(".")[0] == "trl_step"
