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
    """A call that makes a `PPOConfig` without some settings.

    Attributes:
        call: `PPOConfig(...)`, or a call that is given the class, such as `HfArgumentParser(PPOConfig)`.
        left_out: the settings, as far as the text says.
        is_plain: whether the text says it all: no positional arguments, no dictionary that is made elsewhere.
    """

    call: ast.Call
    left_out: tuple[str, ...]
    is_plain: bool


def config_uses(nodes: Sequence[ast.AST], is_config: Callable[[ast.expr], bool], names: Sequence[str]) -> Iterator[Use]:
    """Every use of the class among `nodes` that leaves out some of the settings `names`."""
    literals = {
        ast.unparse(node.targets[0]): node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
    }
    for node in nodes:
        if not isinstance(node, ast.Call) or not names:
            continue
        if is_config(node.func):
            given: set[Any] = {keyword.arg for keyword in node.keywords}
            spread = [literals.get(ast.unparse(each.value), each.value) for each in node.keywords if each.arg is None]
            entries = [each for each in spread if isinstance(each, ast.Dict) and None not in each.keys]
            given |= {key.value for each in entries for key in each.keys if isinstance(key, ast.Constant)}
            if left_out := tuple(name for name in names if name not in given):
                inline = all(keyword.arg or isinstance(keyword.value, ast.Dict) for keyword in node.keywords)
                yield Use(node, left_out, inline and len(entries) == len(spread) and not node.args)
        elif getattr(node.func, "id", getattr(node.func, "attr", "")) not in ABOUT_CLASSES:
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                inner = argument.elts if isinstance(argument, (ast.Tuple, ast.List)) else [argument]
                if any(map(is_config, inner)):
                    yield Use(node, tuple(names), False)


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
        if use.is_plain:
            text = ", ".join(f"{name}={defaults[name]!r}" for name in use.left_out)
            end = script.span(use.call)[1] - 1
            if use.call.keywords:
                end = max(script.span(keyword)[1] for keyword in use.call.keywords)
                end = script.end_of_parentheses(end, script.span(use.call)[1] - 1)
            note = f"{text} added ({_defaults(use)} of {origin})"
            yield script.edit((end, end), f", {text}" if use.call.keywords else text, note)


def questions(
    script: Script, nodes: Sequence[ast.AST], is_config: Callable[[ast.expr], bool], origin: Origin
) -> Iterator[tuple[int, str]]:
    """Line and text of what the kit cannot decide."""
    defaults = relevant_defaults(script.data, origin)
    for use in config_uses(nodes, is_config, ASKED if defaults is None else tuple(defaults)):
        names, call = ", ".join(use.left_out), " ".join(script.text(use.call).split())
        call = call if len(call) <= 60 else f"{call[:57]}..."
        if defaults is None:
            yield use.call.lineno, f"{call} leaves out {names}: {origin.question}"
        elif not use.is_plain:
            old = ", ".join(f"{name}={defaults[name]!r}" for name in use.left_out)
            yield use.call.lineno, f"{call} may leave out {names}: in {origin} the default was {old}"


def _defaults(use: Use) -> str:
    return "the default" if len(use.left_out) == 1 else "the defaults"
