"""Notebooks as scripts, and back: the code cells joined, with the lines that only IPython understands set aside."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MARK = "# trl_step.port: cell"
SET_ASIDE = "pass  # trl_step.port: line"
MAGIC = re.compile(
    r"\s*(?:[%!?]|[/,;]\w|[\w.]+\?{1,2}\s*$|[^=()]+=\s*[%!]|(?:pip|conda|mamba|ls|cd|pwd|cat|cp|mv|rm|mkdir)(?:\s|$))"
)
"""`%magic`, `!command`, `?help`, `help?`, `files = !ls`, `/call 1 2`, `pip install x`."""
PYTHON_CELLS = re.compile(r"%%(\w*time\w*|capture|prun|debug|\w*mem\w*|snakeviz|pyinstrument|scalene|wandb|px)\b")
"""Magics whose cell is Python."""
OF_TRL = re.compile(r"^\s*(?:from\s+trl(?:\.[\w.]+)?\s+import\b|import\s+trl(?:\.[\w.]+)?(?:\s+as\s+\w+)?\s*$)", re.M)


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
        set_aside: the lines that only IPython understands.
        broken: cells that are not Python, and why; they are set aside.

    Raises:
        ValueError: the file is no notebook, or not one of Python.
    """

    def __init__(self, text: str) -> None:
        self._written = text
        self._cells = {number: cell for number, cell in enumerate(_cells(text), start=1) if cell.is_code}
        self._mark, self._pass = MARK, SET_ASIDE
        while any(name in cell.source for cell in self._cells.values() for name in (self._mark, self._pass)):
            self._mark, self._pass = f"{self._mark} of", f"{self._pass} of"
        self.set_aside: list[tuple[Place, str]] = []
        self.broken: list[tuple[Place, str]] = []
        self.foreign: list[tuple[Place, str]] = []
        """cells of other programs that import trl"""
        joined: list[str] = []
        plain: list[str] = []
        self._places: list[Place] = []
        for number, cell in self._cells.items():
            own = cell.source.split("\n")
            joined += [f"{self._mark} {number}", *self._masked(number, own)]
            plain += [f"{self._mark} {number}", *own]
            self._places += [Place(number, line) for line in range(len(own) + 1)]
        self.script, self.text = "\n".join(joined) + "\n", "\n".join(plain) + "\n"

    def _masked(self, number: int, lines: Sequence[str]) -> list[str]:
        """The lines of a cell, with a `pass` in place of each that keeps the cell from being Python."""
        masked = list(lines)
        first = next((line.lstrip() for line in lines if line.strip()), "")
        if first.startswith("%%") and not PYTHON_CELLS.match(first):
            if OF_TRL.search("\n".join(lines)):
                self.foreign.append((Place(number, 1), f"{first.split()[0]}: the code in this cell imports trl"))
            return self._without(number, lines)
        for _ in lines:
            try:
                ast.parse("\n".join(masked))
                return masked
            except SyntaxError as error:
                why, place = error.msg, error.lineno or 0
            except ValueError as error:  # null bytes
                why, place = str(error), 0
            if not 0 < place <= len(lines) or not MAGIC.match(masked[place - 1]):
                break
            line = lines[place - 1]
            indent, goes_on, at = line[: len(line) - len(line.lstrip())], True, place
            while goes_on and at <= len(lines):  # a command may go on in the next line
                masked[at - 1] = self._set_aside(Place(number, at), lines[at - 1], indent)
                goes_on = lines[at - 1].endswith("\\")
                at += 1
        else:
            if _is_python(masked):
                return masked
        self.broken.append((Place(number, max(place, 1)), why))
        return self._without(number, lines)

    def _without(self, number: int, lines: Sequence[str]) -> list[str]:
        return [self._set_aside(Place(number, place), line, "") for place, line in enumerate(lines, start=1)]

    def _set_aside(self, place: Place, line: str, indent: str) -> str:
        self.set_aside.append((place, line))
        return f"{indent}{self._pass} {len(self.set_aside)}"

    def place(self, line: int) -> Place:
        """The cell and its line of a line of the script, from 1."""
        place = self._places[min(line, len(self._places)) - 1]
        return place if place.line or line < 2 else self._places[line - 2]

    def with_script(self, script: str) -> str:
        """The notebook's text with the cells of a changed script; magics, outputs and all else byte for byte."""
        restored = re.sub(
            rf"^[ \t]*{re.escape(self._pass)} (\d+)$", lambda match: self.set_aside[int(match[1]) - 1][1], script,
            flags=re.M,
        )  # fmt: skip
        parts = re.split(rf"^{re.escape(self._mark)} (\d+)\n", restored, flags=re.M)
        text = self._written
        for number, source in reversed(list(zip(parts[1::2], parts[2::2], strict=True))):
            cell = self._cells[int(number)]
            source = source.removesuffix("\n")
            if source != cell.source:
                text = text[: cell.start] + _json_like(self._written[cell.start : cell.end], source) + text[cell.end :]
        return text


class Cell(NamedTuple):
    """Where the source of a cell stands in the notebook's text."""

    is_code: bool
    source: str
    start: int
    end: int


def _cells(text: str) -> list[Cell]:
    try:
        content = json.loads(text)
        about = content.get("metadata") or {}
        language = about.get("language_info", {}).get("name") or about.get("kernelspec", {}).get("language", "python")
        if "worksheets" in content:
            raise ValueError("this is a notebook of format 3: jupyter nbconvert --to notebook FILE writes format 4")
        _, start, _ = next(value for value in _values(text, _start(text, 0)) if value[0] == "cells")
        found = [_cell(text, start) for _, start, _ in _values(text, start)]
    except (json.JSONDecodeError, AttributeError, StopIteration, TypeError) as error:
        raise ValueError("this is not a notebook of format 4, which is JSON with a list of cells") from error
    if language not in ("python", "ipython"):
        raise ValueError(f"the notebook's language is {language}, not python")
    return found


def _cell(text: str, start: int) -> Cell:
    values = {name: (first, last) for name, first, last in _values(text, start)}
    places = [values.get(name, (start, start)) for name in ("cell_type", "source")]
    kind, source = (json.loads(text[first:last] or "null") for first, last in places)
    return Cell(kind == "code", "".join(source or ""), *places[1])


def _start(text: str, place: int) -> int:
    """Where the next character is that is not JSON's white space."""
    found = re.compile(r"[^ \t\r\n]").search(text, place)
    return found.start() if found else len(text)


def _values(text: str, start: int) -> Iterator[tuple[str, int, int]]:
    """Key, first and last place of each value in the object or the list that begins at `start`; a list has no keys."""
    decoder = json.JSONDecoder()
    if text[start] not in "{[":
        raise TypeError(f"{text[start : start + 20]!r} is no object and no list")
    place = _start(text, start + 1)
    while text[place] not in "}]":
        name = ""
        if text[start] == "{":
            name, place = decoder.raw_decode(text, place)
            place = _start(text, _start(text, place) + 1)
        _, end = decoder.raw_decode(text, place)
        yield name, place, end
        place = _start(text, end)
        place = _start(text, place + 1) if text[place] == "," else place


def _json_like(old: str, source: str) -> str:
    """A cell's source as JSON, written as the old one is: a string or a list of lines, its white space, its escapes."""
    ascii_only = old.isascii()
    if old[0] != "[":
        return json.dumps(source, ensure_ascii=ascii_only)
    values = list(_values(old, 0))
    head, tail = old[: values[0][1]], old[values[-1][2] :]
    between = old[values[0][2] : values[1][1]] if values[1:] else f",{head[1:]}"
    lines = re.findall(r"[^\n]*\n|[^\n]+", source)
    return head + between.join(json.dumps(line, ensure_ascii=ascii_only) for line in lines) + tail


def is_notebook(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix == ".ipynb"


def _is_python(lines: Sequence[str]) -> bool:
    try:
        ast.parse("\n".join(lines))
    except (SyntaxError, ValueError):
        return False
    return True
