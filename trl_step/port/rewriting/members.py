"""Methods and attributes of tokenizers, and methods of a script's subclasses of `Trainer`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from trl_step.port.edits import Edit, Script
from trl_step.port.moved import RENAMED_ATTRIBUTES, RENAMED_METHODS
from trl_step.port.rules import NEW_PARAMETERS


def member_edits(script: Script, nodes: Sequence[ast.AST], own: AbstractSet[str]) -> Iterator[Edit]:
    """The edits of a script; `own` are names that it gives functions, classes and fields."""
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in RENAMED_METHODS.keys() - own:
                owner = node.func.value
                is_super = isinstance(owner, ast.Call) and getattr(owner.func, "id", "") == "super"
                note = f"{node.func.attr} was removed: call the tokenizer"
                yield attribute_edit(script, node.func, ".__call__" if is_super else "", note)
        elif isinstance(node, ast.Attribute) and node.attr in RENAMED_ATTRIBUTES.keys() - own:
            new = RENAMED_ATTRIBUTES[node.attr]
            yield attribute_edit(script, node, f".{new}", f"{node.attr} -> {new} (it was renamed)")
        elif isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Trainer") for base in node.bases):
            yield from _override_edits(script, node)


def attribute_edit(script: Script, node: ast.Attribute, text: str, note: str) -> Edit:
    """Another text in place of `.name` in `owner.name`."""
    end = script.span(node)[1]
    return Edit(script.data.rindex(b".", 0, end), end, text, node.end_lineno or node.lineno, note)


def _override_edits(script: Script, node: ast.ClassDef) -> Iterator[Edit]:
    """A further parameter for the methods of `NEW_PARAMETERS`."""
    for method in node.body:
        parameter = NEW_PARAMETERS.get(getattr(method, "name", ""))
        if parameter is None or not isinstance(method, ast.FunctionDef):
            continue
        by_position = [*method.args.posonlyargs, *method.args.args]
        given = {argument.arg for argument in (*by_position, *method.args.kwonlyargs)}
        takes_it = method.args.kwarg is not None or parameter.name in given
        if parameter.position is not None:
            is_last = method.args.kwarg is None and not method.args.kwonlyargs
            takes_it = method.args.vararg is not None or len(by_position) > parameter.position or not is_last
        if not takes_it:
            end = script.end_of_parameters(method)
            comma = " " if script.data[:end].endswith(b",") else ", "
            note = f"Trainer also passes {parameter.name} to {method.name}"
            yield script.edit((end, end), f"{comma}{parameter.name}=None", note)
