"""The import statements of an old script, and where new ones go."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence

from trl_step.port.aliases import new_name
from trl_step.port.edits import Edit, Script
from trl_step.port.train_api import EXPERIMENTAL, NAMES

NEW_PACKAGE = "the package is trl_step"
WITH_TRAIN = "PPO with train() is in trl_step.experimental.ppo; the step API has these names in trl_step"


class Imports:
    """What the import statements of a script bind.

    Args:
        nodes: of the script
        body: the statements that stand outside of all others

    Attributes:
        originals: for each name, its original name.
        sources: for each name of a `from` import, the module that it is from; of trl_step in place of trl.
        stars: the modules of `from module import *`, in the same way.
        packages: for each name of another import, the module that it is, in the same way.
        ours: names that are trl or come from it.
        known: names that an import binds for the whole script.
        is_old: whether the script imports trl itself.
    """

    def __init__(self, nodes: Sequence[ast.AST], body: Sequence[ast.AST]) -> None:
        self.originals: dict[str, str] = {}
        self.sources: dict[str, str] = {}
        self.stars: set[str] = set()
        self.packages: dict[str, str] = {}
        self.ours = {"trl"}
        self.known: set[str] = set()
        self.is_old = False
        for node in nodes:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = getattr(node, "module", None) or node.names[0].name
                originals = {alias.asname or alias.name: alias.name for alias in node.names}
                self.originals |= originals
                if isinstance(node, ast.Import):
                    self.packages |= _packages_of(node)
                elif node.module and not node.level:
                    self.sources |= dict.fromkeys(originals, new_name(node.module))
                    self.stars |= {new_name(node.module)} if "*" in originals else set()
                if node in body:
                    self.known |= originals.keys()
                self.ours |= originals.keys() if new_name(module).startswith("trl_step") else set()
                self.is_old |= not getattr(node, "level", 0) and new_name(module) != module

    def name_from(self, node: ast.expr, names: Sequence[str], places: Sequence[str]) -> str | None:
        """Which of `names` the expression is, if it comes from one of the modules `places`."""
        if isinstance(node, ast.Name) and node.id not in self.originals:
            name, place = node.id, next((star for star in self.stars if star in places), None)
        elif isinstance(node, ast.Name):
            name, place = self.originals[node.id], self.sources.get(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in names:
            package, _, rest = ast.unparse(node.value).partition(".")
            name, place = node.attr, ".".join(filter(None, (self.packages.get(package, "?"), rest)))
        else:
            return None
        return name if name in names and place in places else None

    def place_of(self, node: ast.Attribute) -> str:
        """The dotted name of `node` with the module's own name at its head; "" if it is none of an import."""
        names, owner = [node.attr], node.value
        while isinstance(owner, ast.Attribute):
            names, owner = [owner.attr, *names], owner.value
        package = self.packages.get(owner.id) if isinstance(owner, ast.Name) else None
        return ".".join([package, *names]) if package else ""


def _packages_of(node: ast.Import) -> dict[str, str]:
    whole = {alias.asname: new_name(alias.name) for alias in node.names if alias.asname}
    first = [alias.name.partition(".")[0] for alias in node.names if not alias.asname]
    return whole | {name: new_name(name) for name in first}


def module_edit(script: Script, node: ast.ImportFrom, module: str, note: str) -> Edit:
    """Another module in `from module import ...`."""
    dotted = re.compile(rb"\s*\.\s*".join(map(str.encode, str(node.module).split("."))))
    found = dotted.search(script.data, script.span(node)[0] + len("from"))
    assert found is not None
    return script.edit(found.span(), module, note)


def train_import_edits(script: Script, node: ast.ImportFrom) -> Iterator[Edit]:
    """`from trl import A, PPOTrainer` of a script that means PPO with `train()`: two statements, or one."""
    is_moved = [alias.name in NAMES for alias in node.names]
    module = EXPERIMENTAL if all(is_moved) else new_name(str(node.module))
    if module != node.module:
        yield module_edit(script, node, module, WITH_TRAIN if all(is_moved) else NEW_PACKAGE)
    if all(is_moved) or not any(is_moved):
        return
    spans = [script.span(alias) for alias in node.names]
    names = ", ".join(script.text(alias) for alias in node.names if alias.name in NAMES)
    start = script.span(node)[0]
    newline = "\r\n" if b"\r\n" in script.data else "\n"
    indent = script.data[script.line_starts[node.lineno - 1] : start].decode()
    between = newline + indent if not indent.strip() else "; "
    yield script.edit((start, start), f"from {EXPERIMENTAL} import {names}{between}", WITH_TRAIN)
    last_kept = max(number for number, moved in enumerate(is_moved) if not moved)
    for number, moved in enumerate(is_moved[:last_kept]):
        if moved:
            yield script.edit((spans[number][0], spans[number + 1][0]), "", f"from {EXPERIMENTAL}")
    if last_kept + 1 < len(spans):
        yield script.edit((spans[last_kept][1], spans[-1][1]), "", f"from {EXPERIMENTAL}")


def import_edits(script: Script, needed: Mapping[str, str]) -> list[Edit]:
    """Insert import statements after the first import from transformers, where most of them belong."""
    if not needed:
        return []
    imports = [node for node in script.tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    of_transformers = [node for node in imports if "transformers" in ast.unparse(node)]
    must_be_first = [node for node in imports if getattr(node, "module", "") == "__future__"]
    docstring = script.tree.body[:1] if ast.get_docstring(script.tree) is not None else []
    anchors = of_transformers[:1] or must_be_first[-1:] or docstring
    if anchors:
        line = anchors[0].end_lineno or anchors[0].lineno
    else:  # before the first statement: lines above it may name the interpreter and the encoding
        first = script.tree.body[0]
        line = min([first.lineno, *(each.lineno for each in getattr(first, "decorator_list", ()))]) - 1
    place = script.line_starts[line] if line < len(script.line_starts) else len(script.data)
    newline = "\r\n" if b"\r\n" in script.data else "\n"
    statements = "".join(statement + newline for statement in needed.values())
    if place and not script.data[:place].endswith((b"\n", b"\r")):
        statements = newline + statements
    return [script.edit((place, place), statements, "; ".join(needed.values()))]


def import_of(alias: ast.alias) -> str:
    """`import trl.core` binds `trl`, so both are imported."""
    name = new_name(alias.name)
    if alias.asname:
        return f"{name} as {alias.asname}"
    return "trl_step as trl" if alias.name == "trl" else f"trl_step as trl, {name}"
