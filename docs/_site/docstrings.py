"""An extension of Griffe: what it cannot read in this repository's docstrings is put as it expects it.

Sections are those of Google's style. Griffe takes the words before a colon under "Returns:" for a type, where here a
plain sentence stands, or one entry for each of several results; "Class attributes, for subclasses:" it does not know.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe

RESULT = re.compile(r"^(Returns|Yields):\n((?:(?:[ \t].*)?\n)*(?:[ \t].*)?)", re.MULTILINE)
FOR_SUBCLASSES = re.compile(r"^(Class attributes?, for subclasses):\n((?:[ \t].*\n?)+)", re.MULTILINE)
MADE = {"dict": "{}", "list": "[]"}
ENTRY = re.compile(r"^(\w+(?:, \w+)*): ")


class Docstrings(griffe.Extension):
    """See the module."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for every object that was read."""
        if obj.docstring:
            text = FOR_SUBCLASSES.sub(_as_text, obj.docstring.value)
            obj.docstring.value = RESULT.sub(_with_type_left_out, text)

    def on_attribute(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Defaults as a reader means them: `_Default(128)` is its number, `field(default_factory=dict)` is `{}`."""
        if not isinstance(attr.value, griffe.ExprCall):
            return
        if str(attr.value.function) == "_Default":
            attr.value = attr.value.arguments[0]
        elif str(attr.value.function) == "field":
            made = {str(each.name): str(each.value) for each in attr.value.arguments}
            attr.value = MADE.get(made.get("default_factory", ""))  # what is computed stands in the text


def _as_text(section: re.Match[str]) -> str:
    return f"**{section.group(1)}:**\n\n{_listed(section.group(2))}\n\n"


def _with_type_left_out(section: re.Match[str]) -> str:
    """Nothing before a colon: Griffe then takes the type from the signature, and the rest as Markdown."""
    title, body = section.groups()
    return f"{title}:\n" + textwrap.indent(f": {_listed(body)}", "    ", lambda line: True) + "\n\n"


def _listed(body: str) -> str:
    """Entries as a list in Markdown; a plain text as it is."""
    entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
    if not any(ENTRY.match(entry) for entry in entries):
        return "\n".join(entries)
    return "\n\n" + "\n".join(ENTRY.sub(r"- `\1`: ", entry) for entry in entries)
