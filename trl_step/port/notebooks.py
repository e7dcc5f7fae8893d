"""Notebooks as scripts, and back: the code cells joined, with the lines that only IPython understands set aside."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MARK = "# trl_step.port: cell"
SET_ASIDE = "pass  # trl_step.port: line"
MAGIC = re.compile(r"\s*(?:[%!?]|[\w.]+\?{1,2}\s*$|[\w, ]+=\s*[%!])")
"""`%magic`, `!command`, `?help`, `help?`, `files = !ls`."""
PYTHON_CELLS = re.compile(r"%%(time|timeit|capture|prun)\b")
"""Magics whose cell is Python."""


class Place(NamedTuple):
    """A cell, counted over all cells, and a line in it; both from 1."""

    cell: int
    line: int

    def __str__(self) -> str:
        return f"cell {self.cell}:{self.line}"


class Notebook:
    """A Jupyter notebook (format 4).

    Attributes:
        script: the code cells as one script, a line with `MARK` before each.
        text: the same with the lines that only IPython understands.

    Raises:
        ValueError: the file is no notebook, or not one of Python.
        SyntaxError: a cell is not valid in the running Python version; the message names it.
    """

    def __init__(self, text: str) -> None:
        self._written = text
        try:
            self.content: dict[str, Any] = json.loads(text)
            cells = self.content["cells"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError("this is not a notebook of format 4, which is JSON with a list of cells") from error
        language = self.content.get("metadata", {}).get("language_info", {}).get("name", "python")
        if language != "python":
            raise ValueError(f"the notebook's language is {language}, not python")
        self._cells: dict[int, dict[str, Any]] = {
            number: cell for number, cell in enumerate(cells, start=1) if cell.get("cell_type") == "code"
        }
        self.set_aside: list[tuple[Place, str]] = []
        """the lines that only IPython understands"""
        joined: list[str] = []
        plain: list[str] = []
        self._places: list[Place] = []
        for number, cell in self._cells.items():
            own = _source(cell).split("\n")
            masked = self._masked(number, own)
            _check(number, masked)
            joined += [f"{MARK} {number}", *masked]
            plain += [f"{MARK} {number}", *own]
            self._places += [Place(number, line) for line in range(len(own) + 1)]
        self.script, self.text = "\n".join(joined) + "\n", "\n".join(plain) + "\n"

    def _masked(self, number: int, lines: Sequence[str]) -> list[str]:
        """The lines of a cell, with a `pass` in place of each that keeps the cell from being Python."""
        masked = list(lines)
        first = next((line.lstrip() for line in lines if line.strip()), "")
        if first.startswith("%%") and not PYTHON_CELLS.match(first):
            return [self._set_aside(Place(number, place), line, "") for place, line in enumerate(lines, start=1)]
        for _ in lines:
            try:
                ast.parse("\n".join(masked))
                break
            except SyntaxError as error:
                place = error.lineno or 0
                if not 0 < place <= len(lines) or not MAGIC.match(masked[place - 1]):
                    break
                line = lines[place - 1]
                indent, goes_on = line[: len(line) - len(line.lstrip())], True
                while goes_on and place <= len(lines):  # a command may go on in the next line
                    masked[place - 1] = self._set_aside(Place(number, place), lines[place - 1], indent)
                    goes_on = lines[place - 1].endswith("\\")
                    place += 1
        return masked

    def _set_aside(self, place: Place, line: str, indent: str) -> str:
        self.set_aside.append((place, line))
        return f"{indent}{SET_ASIDE} {len(self.set_aside)}"

    def place(self, line: int) -> Place:
        """The cell and its line of a line of the script, from 1."""
        return self._places[min(line, len(self._places)) - 1]

    def with_script(self, script: str) -> str:
        """The notebook's text with the cells of a changed script; magics, outputs and all else as they were."""
        restored = re.sub(
            rf"^[ \t]*{re.escape(SET_ASIDE)} (\d+)$", lambda match: self.set_aside[int(match[1]) - 1][1], script,
            flags=re.M,
        )  # fmt: skip
        parts = re.split(rf"^{re.escape(MARK)} (\d+)\n", restored, flags=re.M)
        for number, source in zip(parts[1::2], parts[2::2], strict=True):
            cell = self._cells[int(number)]
            source = source.removesuffix("\n")
            if source != _source(cell):
                cell["source"] = source if isinstance(cell["source"], str) else source.splitlines(keepends=True)
        return self._dumped()

    def _dumped(self) -> str:
        """JSON in the format of the file."""
        end = "\n" if self._written.endswith("\n") else ""
        before = json.loads(self._written)
        for indent in (1, 2, 4, None):
            for ascii_only in (False, True):
                if json.dumps(before, indent=indent, ensure_ascii=ascii_only) + end == self._written:
                    return json.dumps(self.content, indent=indent, ensure_ascii=ascii_only) + end
        return json.dumps(self.content, indent=1, ensure_ascii=False) + end


def is_notebook(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix == ".ipynb"


def _source(cell: dict[str, Any]) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _check(number: int, lines: Sequence[str]) -> None:
    try:
        ast.parse("\n".join(lines))
    except SyntaxError as error:
        raise SyntaxError(f"cell {number}: {error.msg}", (None, error.lineno, error.offset, error.text)) from error
