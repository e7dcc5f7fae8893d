"""Replaces parts of a Python file and keeps every other byte."""

from __future__ import annotations

import ast
import bisect
import io
import re
import tokenize
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

Node = ast.expr | ast.stmt | ast.keyword | ast.alias | ast.arg


class Edit(NamedTuple):
    """One replacement.

    Attributes:
        start: offset in the UTF-8 text.
        end: offset of the end of the replaced text; equal to `start` for an insertion.
        text: the new text.
        line: line number, from 1.
        note: what is changed and why.
    """

    start: int
    end: int
    text: str
    line: int
    note: str


class Script:
    """A Python source file: its tree and the positions of the nodes.

    Attributes:
        data: the text in UTF-8, line ends as in the file.
        tree: of that text.

    Raises:
        SyntaxError: it is not valid in the running Python version.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.tree = ast.parse(data.decode())  # parsing bytes would obey a line that declares another encoding
        self.line_starts = [0] + [match.end() for match in re.finditer(rb"\r\n|\r|\n", data)]

    def span(self, node: Node) -> tuple[int, int]:
        """Where `node` begins and ends in `data`."""
        first = self.line_starts[node.lineno - 1]
        last = self.line_starts[(node.end_lineno or node.lineno) - 1]
        return first + node.col_offset, last + (node.end_col_offset or 0)

    def text(self, node: Node) -> str:
        """The source of `node`."""
        start, end = self.span(node)
        return self.data[start:end].decode()

    def edit(self, span: tuple[int, int], text: str, note: str) -> Edit:
        """The replacement of the text in `span`."""
        return Edit(*span, text, bisect.bisect_right(self.line_starts, span[0]), note)

    def removal(self, start: int, end: int) -> tuple[int, int]:
        """What to remove from a list of arguments or entries along with the item from `start` to `end`.

        The comma after it, or the one before the last item; and the line, if nothing else is on it.
        """
        # skip a comment as a whole: a comma in it does not count
        comma = re.compile(rb"(\s|\\\r?\n|#[^\r\n]*(?=[\r\n]))*,").match(self.data, end)
        if comma:
            end = comma.end()
        line_start = self.data.rfind(b"\n", 0, start) + 1
        rest = re.compile(rb"[ \t]*(#[^\r\n]*)?(\r\n|\r|\n)").match(self.data, end)
        if not self.data[line_start:start].strip() and rest:
            return line_start, rest.end()
        if not comma:
            before = re.compile(rb",\s*$").search(self.data, 0, start)
            return (before.start() if before else start), end
        spaces = re.compile(rb"[ \t]*").match(self.data, end)
        assert spaces is not None
        return start, spaces.end()

    def end_of_parentheses(self, end: int, limit: int) -> int:
        """The offset after the parentheses that close at `end`; `limit` is before the one that closes all arguments."""
        while match := re.compile(rb"\s*\)").match(self.data, end, limit):
            end = match.end()
        return end

    def end_of_parameters(self, function: ast.FunctionDef) -> int:
        """The offset after the last parameter of `function` and its comma, if it has one."""
        start = self.span(function)[0]
        text = self.data[start:].decode()
        lines, depth, end = text.split("\n"), 0, (1, 0)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.OP:
                depth += (token.string in "([{") - (token.string in ")]}")
                if depth == 0 and token.string == ")":
                    break
            if token.type not in (tokenize.COMMENT, tokenize.NL):
                end = token.end
        before = "\n".join([*lines[: end[0] - 1], lines[end[0] - 1][: end[1]]])
        return start + len(before.encode())


def applied(data: bytes, edits: Iterable[Edit]) -> tuple[bytes, list[Edit]]:
    """`data` with the edits, and the edits that were made: of two that overlap, only the first one."""
    made: list[Edit] = []
    for edit in sorted(edits):
        if not made or edit.start >= made[-1].end:
            made.append(edit)
    for edit in reversed(made):
        data = data[: edit.start] + edit.text.encode() + data[edit.end :]
    return data, made


def read_source(path: Path) -> tuple[bytes, str]:
    """The text of a Python file as UTF-8, and the encoding of the file."""
    raw = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    return raw.decode(encoding).encode(), encoding


def write_source(path: Path, data: bytes, encoding: str) -> None:
    """Write UTF-8 text in the encoding of its file."""
    path.write_bytes(data.decode().encode(encoding))
