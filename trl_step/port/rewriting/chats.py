"""`tokenizer.apply_chat_template(...)` without `return_dict`, which gave token ids in transformers 4."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

from trl_step.port.edits import Edit, Script
from trl_step.port.imports import Imports

METHOD = "apply_chat_template"
BEFORE_TOKENIZE, BEFORE_RETURN_DICT = 6, 11
"""How many arguments of a call stand before these two."""
NOTE = "return_dict=False (transformers 4 gave token ids, transformers 5 a dictionary)"


def _calls(nodes: Sequence[ast.AST], imports: Imports, own: AbstractSet[str]) -> Iterator[ast.Call]:
    """Calls of the method that tokenize, as far as the text says, and do not say what they return.

    There is none in a script that imports trl_step under its own name: it was written for the packages of today.
    """
    if METHOD in own or (imports.ours != {"trl"} and not imports.is_old):
        return
    for call in nodes:
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or call.func.attr != METHOD:
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        tokenize = call.args[BEFORE_TOKENIZE] if len(call.args) > BEFORE_TOKENIZE else keywords.get("tokenize")
        is_text = isinstance(tokenize, ast.Constant) and not tokenize.value
        is_said = len(call.args) > BEFORE_RETURN_DICT or {"return_dict", "return_assistant_tokens_mask"} & set(keywords)
        if not is_text and not is_said and not imports.place_of(call.func):
            yield call


def _is_clear(call: ast.Call) -> bool:
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return bool(call.args or call.keywords) and not starred and all(keyword.arg for keyword in call.keywords)


def chat_edits(script: Script, nodes: Sequence[ast.AST], imports: Imports, own: AbstractSet[str]) -> Iterator[Edit]:
    """`return_dict=False` as the last argument; `own` are names that the script gives functions, classes and fields."""
    for call in filter(_is_clear, _calls(nodes, imports, own)):
        limit = script.span(call)[1] - 1
        arguments: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
        last = max(script.span(argument)[1] for argument in arguments)
        end = script.end_of_parentheses(last, limit)
        yield script.edit((end, end), ", return_dict=False", NOTE)


def chat_questions(nodes: Sequence[ast.AST], imports: Imports, own: AbstractSet[str]) -> Iterator[tuple[int, str]]:
    """Line and text of calls whose arguments are unpacked, which may say `return_dict`."""
    for call in _calls(nodes, imports, own):
        if not _is_clear(call):
            yield call.lineno, f"{METHOD}: if it tokenizes and its arguments have no return_dict, add {NOTE}"
