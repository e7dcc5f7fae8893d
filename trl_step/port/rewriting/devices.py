"""`device_map=places`, where a script says elsewhere what `places` is."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence

from trl_step.port.edits import Edit, Script
from trl_step.port.rules import DeviceMap, Source

LOADING_KINDS = ("pipeline", "from_pretrained", "value_head.from_pretrained")
OURS = "get_kbit_device_map"
"""It names no GPU where there is none."""


def _uses(nodes: Sequence[ast.AST]) -> Iterator[ast.expr]:
    """What `device_map` is given as an argument or as an entry of a dictionary."""
    for node in nodes:
        if isinstance(node, ast.keyword) and node.arg == "device_map":
            yield node.value
        elif isinstance(node, ast.Dict):
            entries = zip(node.keys, node.values, strict=True)
            yield from (value for key, value in entries if getattr(key, "value", None) == "device_map")


def _givings(nodes: Sequence[ast.AST]) -> Iterator[tuple[str, ast.expr]]:
    """Names of the script, and what an assignment or a default value gives them."""
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield ast.unparse(target), node.value
        elif isinstance(node, ast.arguments):
            by_position = [*node.posonlyargs, *node.args]
            with_default = zip(by_position[len(by_position) - len(node.defaults) :], node.defaults, strict=True)
            by_name = zip(node.kwonlyargs, node.kw_defaults, strict=True)
            yield from ((one.arg, default) for one, default in (*with_default, *by_name) if default is not None)


def device_edits(
    script: Script,
    nodes: Sequence[ast.AST],
    source_of: Callable[[ast.expr], Source],
    need: Callable[[str, str], None],
) -> Iterator[Edit]:
    """A condition for each dictionary that names one place, where it gets its name."""
    rule, done = DeviceMap(), set()
    used = {use.id for use in _uses(nodes) if isinstance(use, ast.Name)}
    for name, value in _givings(nodes):
        new = rule.sources({"device_map": source_of(value)}) if name in used and id(value) not in done else None
        if new is not None:
            done.add(id(value))
            need(rule.imports, "torch")
            note = f"{name} = {' '.join(script.text(value).split())} -> {new['device_map']} ({rule.why})"
            yield script.edit(script.span(value), new["device_map"], note)


def device_questions(
    script: Script, nodes: Sequence[ast.AST], kind_of: Callable[[ast.Call], str | None]
) -> Iterator[tuple[int, str]]:
    """Line and text of calls whose `device_map` comes from somewhere that cannot be followed."""
    givings = list(_givings(nodes))
    for call in nodes:
        if not isinstance(call, ast.Call) or kind_of(call) not in LOADING_KINDS:
            continue
        for keyword in call.keywords:
            if keyword.arg == "device_map" and not _is_clear(keyword.value, givings, frozenset()):
                yield (
                    keyword.value.lineno,
                    f"device_map={' '.join(script.text(keyword.value).split())} is made where it cannot be followed: "
                    "without a GPU it must not name one, as {'': 0} does",
                )


def _is_clear(value: ast.expr, givings: Sequence[tuple[str, ast.expr]], asked: frozenset[str]) -> bool:
    """Whether the text says what `value` is. Settings of the command line, `args.device_map`, are strings."""
    if isinstance(value, ast.Name):
        given = [each for name, each in givings if name == value.id]
        is_new = value.id not in asked
        return not is_new or (bool(given) and all(_is_clear(each, givings, asked | {value.id}) for each in given))
    if isinstance(value, ast.IfExp):
        return all(_is_clear(each, givings, asked) for each in (value.body, value.orelse))
    if isinstance(value, ast.BoolOp):
        return all(_is_clear(each, givings, asked) for each in value.values)
    if isinstance(value, ast.Call):
        return OURS in ast.unparse(value.func)
    return isinstance(value, (ast.Constant, ast.Dict, ast.Attribute))
