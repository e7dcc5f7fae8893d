"""The keywords of a call, and the entries of a dictionary that holds some, by the rules of `CALLS`."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from trl_step.port.edits import Edit, Script
from trl_step.port.rules import CALLS, UNKNOWN, Rule, Source, Warmup

ATOMS = (ast.Name, ast.Attribute, ast.Constant, ast.Call, ast.Subscript, ast.Dict, ast.List)


WARMUP = Warmup()


def entries_of(nodes: Sequence[ast.AST]) -> Mapping[str, set[str]]:
    """For each name of a dictionary, as written: the entries that assignments give it."""
    entries: defaultdict[str, set[str]] = defaultdict(set)
    for node in nodes:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
                    entries[ast.unparse(target.value)].add(str(target.slice.value))
                elif isinstance(node.value, ast.Dict):
                    names = {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
                    entries[ast.unparse(target)] |= names
                elif isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "dict":
                    entries[ast.unparse(target)] |= {str(keyword.arg) for keyword in node.value.keywords}
    return entries


class Item(NamedTuple):
    """One `name=value` of a call, or one `"name": value` of a dictionary, which has a `quote`."""

    name: str
    start: int
    end: int
    value: ast.expr
    quote: str = ""

    def written(self, name: str, source: str) -> str:
        return f"{self.quote}{name}{self.quote}: {source}" if self.quote else f"{name}={source}"


class Arguments:
    """Finds the edits of arguments.

    Args:
        script: that has them
        nodes: of the script
        need: called with a statement that an edit needs, and the name that it binds
    """

    def __init__(self, script: Script, nodes: Sequence[ast.AST], need: Callable[[str, str], None]) -> None:
        self.script, self.need = script, need
        self.entries = entries_of(nodes)

    def of_call(self, kind: str, call: ast.Call) -> Iterator[Edit]:
        """The edits of a call's keywords."""
        return self._item_edits(kind, self._keywords(call))

    def of_dictionary(self, kind: str, value: ast.expr) -> Iterator[Edit]:
        """The edits of a dictionary that is spelled out, or of those that `value` is made of."""
        if isinstance(value, ast.Dict):
            yield from self._item_edits(kind, self._entries(value))
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict":
            yield from self._item_edits(kind, self._keywords(value))
        parts: list[ast.expr] = []
        if isinstance(value, ast.Dict):
            parts = [part for key, part in zip(value.keys, value.values, strict=True) if key is None]
        elif isinstance(value, ast.IfExp):
            parts = [value.body, value.orelse]
        elif isinstance(value, ast.BinOp):
            parts = [value.left, value.right]
        elif isinstance(value, ast.NamedExpr):
            parts = [value.value]
        for part in parts:
            yield from self.of_dictionary(kind, part)

    def of_assignment(
        self, kind: str, node: ast.Assign | ast.AnnAssign, target: ast.Subscript, value: ast.expr
    ) -> Iterator[Edit]:
        """`kwargs["old"] = value` becomes `kwargs["new"] = value`, or an update with several."""
        if not isinstance(target.slice, ast.Constant) or not isinstance(target.slice.value, str):
            return
        item = Item(target.slice.value, *self.script.span(node), value)
        entries = self.entries[ast.unparse(target.value)]
        if WARMUP in CALLS[kind] and item.name in WARMUP.old and entries.issuperset(WARMUP.old):
            yield from self._warmup(item, self.script.text(target.value))
            return
        for rule in CALLS[kind]:
            new = rule.sources({item.name: self.source(value)}) if item.name in rule.old else None
            if new is not None:
                given, owner = list(new.items()), self.script.text(target.value)
                text = f"{owner}.update({', '.join(map('='.join, given))})"
                if len(given) == 1:
                    text = f'{owner}["{given[0][0]}"] = {given[0][1]}'
                yield self.script.edit((item.start, item.end), text, self._note(rule, [item], text))
                self._need_of(rule, text)

    def source(self, value: ast.expr) -> Source:
        """An expression for the rules."""
        text = self.script.text(value)
        try:
            return Source(text, ast.literal_eval(value))
        except (ValueError, TypeError):
            return Source(text if isinstance(value, ATOMS) else f"({text})")

    def end(self, node: ast.expr | ast.keyword, limit: int) -> int:
        """The offset after `node` and its parentheses; `limit` is before the parenthesis that closes all arguments."""
        return self.script.end_of_parentheses(self.script.span(node)[1], limit)

    def _warmup(self, item: Item, owner: str) -> Iterator[Edit]:
        """Ratio and steps in one dictionary by two statements, in any order: the steps count, unless they are 0."""
        source = self.source(item.value)
        if item.name == "warmup_ratio":
            text = f'{owner}["warmup_steps"] = {owner}.get("warmup_steps") or {source.text}'
        elif source.value is UNKNOWN:
            text = f'{owner}["warmup_steps"] = {source.text} or {owner}.get("warmup_steps", 0)'
        elif not source.value:
            text = f'{owner}.setdefault("warmup_steps", 0)'
        else:
            return
        yield self.script.edit((item.start, item.end), text, self._note(WARMUP, [item], text))

    def _keywords(self, call: ast.Call) -> list[Item]:
        return [
            Item(keyword.arg, *self.script.span(keyword), keyword.value)
            for keyword in call.keywords
            if keyword.arg is not None
        ]

    def _entries(self, dictionary: ast.Dict) -> Iterator[Item]:
        limit = self.script.span(dictionary)[1] - 1
        for key, value in zip(dictionary.keys, dictionary.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                start, quote = self.script.span(key)[0], self.script.text(key)[0]
                yield Item(key.value, start, self.end(value, limit), value, quote if quote in "\"'" else '"')

    def _item_edits(self, kind: str, items: Iterable[Item]) -> Iterator[Edit]:
        """The edits of a call's arguments or of a dictionary's entries."""
        by_name = {item.name: item for item in items}
        for rule in CALLS[kind]:
            given = [by_name[old] for old in rule.old if old in by_name]
            new = rule.sources({item.name: self.source(item.value) for item in given}) if given else None
            if new is None:
                continue
            if any(name in by_name and name not in rule.old for name in new):
                new = {}
            first, *others = given
            text = ", ".join(first.written(name, source) for name, source in new.items())
            note = self._note(rule, given, text)
            self._need_of(rule, text)
            start = first.start + len(first.quote)
            end = start + len(first.name)
            is_plain = self.script.data[start:end] == first.name.encode()  # 'a' and a, not u'a' nor "" 'a'
            if is_plain and list(new.values()) == [self.script.text(first.value)]:
                yield self.script.edit((start, end), next(iter(new)), note)
            elif new:
                yield self.script.edit((first.start, first.end), text, note)
            else:
                yield self.script.edit(self.script.removal(first.start, first.end), "", note)
            for item in others:
                yield self.script.edit(self.script.removal(item.start, item.end), "", f"{item.name}: see {first.name}")

    def _note(self, rule: Rule, given: Iterable[Item], text: str) -> str:
        old = ", ".join(" ".join(self.script.data[item.start : item.end].decode().split()) for item in given)
        return f"{old} -> {text or 'left out'} ({rule.why})"

    def _need_of(self, rule: Rule, text: str) -> None:
        name = rule.imports.rpartition(" ")[2]
        if name and re.search(rf"\b{name}\b", text):
            self.need(rule.imports, name)
