"""`tokenizer.apply_chat_template` without `return_dict`, which gave token ids in transformers 4."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from trl_step.port.edits import Edit, Script
from trl_step.port.imports import Imports

METHOD = "apply_chat_template"
BEFORE_TOKENIZE, BEFORE_RETURN_DICT = 6, 11
"""How many arguments of a call stand before these two."""
RETURN_IDS = "return_dict=False"
WHY = "(transformers 4 gave token ids, transformers 5 a dictionary)"


class Use(NamedTuple):
    """`method(arguments, keywords)`, or `partial(method, arguments, keywords)`."""

    call: ast.Call
    arguments: Sequence[ast.expr]

    def is_clear(self) -> bool:
        """Whether an argument can be added: the text has them all."""
        starred = any(isinstance(argument, ast.Starred) for argument in self.arguments)
        has_some = bool(self.call.args or self.call.keywords)
        return has_some and not starred and all(keyword.arg for keyword in self.call.keywords)


def _is_method(node: ast.AST, imports: Imports) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == METHOD and not imports.place_of(node)


def _calls(nodes: Sequence[ast.AST], imports: Imports) -> Iterator[Use]:
    """What calls the method, or is to call it later."""
    for call in nodes:
        if isinstance(call, ast.Call):
            is_partial = ast.unparse(call.func).endswith("partial") and bool(call.args)
            if _is_method(call.func, imports):
                yield Use(call, call.args)
            elif is_partial and _is_method(call.args[0], imports):
                yield Use(call, call.args[1:])


def _uses(nodes: Sequence[ast.AST], imports: Imports) -> Iterator[Use]:
    """Calls that tokenize, as far as the text says, and do not say what they return."""
    for use in _calls(nodes, imports):
        keywords = {keyword.arg: keyword.value for keyword in use.call.keywords}
        by_position = len(use.arguments)
        tokenize = use.arguments[BEFORE_TOKENIZE] if by_position > BEFORE_TOKENIZE else keywords.get("tokenize")
        is_text = isinstance(tokenize, ast.Constant) and not tokenize.value
        is_said = by_position > BEFORE_RETURN_DICT or {"return_dict", "return_assistant_tokens_mask"} & set(keywords)
        if not is_text and not is_said:
            yield use


def _is_of_today(imports: Imports, own: AbstractSet[str]) -> bool:
    """Whether the script was written for the packages of today, as it imports trl_step under its own name, or has a
    method of this name."""
    return METHOD in own or (imports.ours != {"trl"} and not imports.is_old)


def chat_edits(script: Script, nodes: Sequence[ast.AST], imports: Imports, own: AbstractSet[str]) -> Iterator[Edit]:
    """`return_dict=False` as the last argument; `own` are names that the script gives functions, classes and fields."""
    for call, _ in filter(Use.is_clear, [] if _is_of_today(imports, own) else _uses(nodes, imports)):
        limit = script.span(call)[1] - 1
        arguments: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        last = max(script.span(argument)[1] for argument in arguments)
        end = script.end_of_parentheses(last, limit)
        yield script.edit((end, end), f", {RETURN_IDS}", f"{RETURN_IDS} {WHY}")


def chat_questions(nodes: Sequence[ast.AST], imports: Imports, own: AbstractSet[str]) -> Iterator[tuple[int, str]]:
    """Line and text of calls whose arguments are unpacked, which may say `return_dict`, and of methods given away."""
    if _is_of_today(imports, own):
        return
    for use in _uses(nodes, imports):
        if not use.is_clear():
            yield (
                use.call.lineno,
                f"{METHOD}: if it tokenizes and its arguments have no return_dict, add {RETURN_IDS} {WHY}",
            )
    called = {part for use in _calls(nodes, imports) for part in (use.call.func, *use.call.args[:1])}
    for node in nodes:
        is_read = isinstance(getattr(node, "ctx", None), ast.Load) and node not in called
        if is_read and isinstance(node, ast.Attribute) and _is_method(node, imports):
            method = ast.unparse(node)
            yield node.lineno, f"{method}: if it tokenizes, give it as partial({method}, {RETURN_IDS}) {WHY}"
