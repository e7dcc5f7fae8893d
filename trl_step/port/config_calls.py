"""Calls of `PPOConfig` in an old script that leave out settings whose defaults depend on the release of TRL."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from trl_step.port.edits import Edit, Script
from trl_step.port.releases import ASKED, NAMES, Origin

ABOUT_CLASSES = ("isinstance", "issubclass", "fields")
"""Functions that are given the class and make no object of it."""


class Use(NamedTuple):
    """What makes a `PPOConfig` without some settings.

    Attributes:
        node: `PPOConfig(...)`, or what is given the class: a call such as `HfArgumentParser(PPOConfig)`, a class that
            derives from it, a field of this type, another name for it.
        left_out: the settings, as far as the text says.
        is_plain: whether the text says it all: no positional arguments, no dictionary that is made elsewhere.
    """

    node: ast.Call | ast.stmt
    left_out: tuple[str, ...]
    is_plain: bool


def config_uses(nodes: Sequence[ast.AST], is_config: Callable[[ast.expr], bool], names: Sequence[str]) -> Iterator[Use]:
    """Every use of the class among `nodes` that leaves out some of the settings `names`."""
    literals = {
        ast.unparse(node.targets[0]): node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    for node in nodes if names else ():
        if not isinstance(node, ast.Call):
            left_out = tuple(name for name in names if name not in _own_fields(node))
            if left_out and isinstance(node, ast.stmt) and any(map(is_config, _classes_of(node, nodes))):
                yield Use(node, left_out, False)
        elif is_config(node.func):
            given: set[Any] = {keyword.arg for keyword in node.keywords}
            spread = [literals.get(ast.unparse(each.value), each.value) for each in node.keywords if each.arg is None]
            entries = [each for each in spread if isinstance(each, ast.Dict) and None not in each.keys]
            given |= {key.value for each in entries for key in each.keys if isinstance(key, ast.Constant)}
            if left_out := tuple(name for name in names if name not in given):
                inline = all(keyword.arg or isinstance(keyword.value, ast.Dict) for keyword in node.keywords)
                yield Use(node, left_out, inline and len(entries) == len(spread) and not node.args)
        elif getattr(node.func, "id", getattr(node.func, "attr", "")) not in ABOUT_CLASSES:
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                if any(map(is_config, _parts(argument))):
                    yield Use(node, tuple(names), False)


def _parts(value: ast.expr) -> Sequence[ast.expr]:
    """The entries of a tuple, a list or a dictionary; of all else the expression itself."""
    if isinstance(value, ast.Dict):
        return value.values
    return value.elts if isinstance(value, (ast.Tuple, ast.List)) else [value]


def _classes_of(node: ast.stmt, nodes: Sequence[ast.AST]) -> Sequence[ast.expr]:
    """Expressions that may be a class from which other code makes objects: a base, a field's type, a value with a name,
    the type of an argument of a function that is run from the command line."""
    if isinstance(node, ast.ClassDef):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value is None]
        return [*node.bases, *(each.annotation for each in fields)]
    if isinstance(node, (ast.Assign, ast.AnnAssign)):
        return _parts(node.value) if node.value is not None else []
    if isinstance(node, ast.FunctionDef) and node.name in _commands(nodes):
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        return [each.annotation for each in arguments if each.annotation is not None]
    return []


def _commands(nodes: Sequence[ast.AST]) -> set[str]:
    """Names in calls such as `tyro.cli(main)`."""
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    given = [
        call.args[:1] for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")).lower() == "cli"
    ]
    return {ast.unparse(argument) for arguments in given for argument in arguments}


def _own_fields(node: ast.AST) -> set[str]:
    """Fields that a class gives a default of its own."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    return {ast.unparse(each.target) for each in body if isinstance(each, ast.AnnAssign) and each.value is not None}


def relevant_defaults(data: bytes, origin: Origin) -> Mapping[str, Any] | None:
    """The defaults of the script's release that it can notice; None if the release is not known."""
    if origin.defaults is None:
        return None
    return {name: value for name, value in origin.defaults.items() if name not in NAMES or f".{name}".encode() in data}


def default_edits(
    script: Script, nodes: Sequence[ast.AST], is_config: Callable[[ast.expr], bool], origin: Origin
) -> Iterator[Edit]:
    """Write the defaults of the script's release into each call that leaves them out."""
    defaults = relevant_defaults(script.data, origin) or {}
    for use in config_uses(nodes, is_config, tuple(defaults)):
        if use.is_plain and isinstance(use.node, ast.Call):
            text = ", ".join(f"{name}={defaults[name]!r}" for name in use.left_out)
            end = script.span(use.node)[1] - 1
            if use.node.keywords:
                end = max(script.span(keyword)[1] for keyword in use.node.keywords)
                end = script.end_of_parentheses(end, script.span(use.node)[1] - 1)
            note = f"{text} added ({_defaults(use)} of {origin})"
            yield script.edit((end, end), f", {text}" if use.node.keywords else text, note)


def questions(
    script: Script, nodes: Sequence[ast.AST], is_config: Callable[[ast.expr], bool], origin: Origin
) -> Iterator[tuple[int, str]]:
    """Line and text of what the kit cannot decide."""
    defaults = relevant_defaults(script.data, origin)
    for use in config_uses(nodes, is_config, ASKED if defaults is None else tuple(defaults)):
        names, call = ", ".join(use.left_out), " ".join(script.text(use.node).split())
        call, line = call if len(call) <= 60 else f"{call[:57]}...", use.node.lineno
        if defaults is None:
            yield line, f"{call} leaves out {names}: {origin.question}"
        elif not use.is_plain:
            old = ", ".join(f"{name}={defaults[name]!r}" for name in use.left_out)
            yield line, f"{call} may leave out {names}: in {origin} the default was {old}"


def _defaults(use: Use) -> str:
    return "the default" if len(use.left_out) == 1 else "the defaults"
