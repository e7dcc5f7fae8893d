"""docs/reference/: a page for each public class and one for the functions, made from signatures and docstrings.

`python -m tests.class_pages` writes them anew, and their list in docs/README.md. Public is what `trl_step` and its
subpackages name in `__all__`.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from tests.markdown_pages import DOCS

REFERENCE = DOCS / "reference"
INDEX = DOCS / "README.md"
PACKAGES = (
    "trl_step", "trl_step.environment", "trl_step.environment.adapters", "trl_step.extras", "trl_step.models",
    "trl_step.trainer", "trl_step.port",
)  # fmt: skip
"""Where public names come from; the first one that has a name is where it is imported from."""
MODULES = ("trl_step.core", "trl_step.trainer.callbacks", "trl_step.extras.all_scores")
"""Modules whose own classes and functions are public, too."""
BEGIN = "<!-- list of reference pages: begin (python -m tests.class_pages writes it) -->"
END = "<!-- list of reference pages: end -->"
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): ", re.MULTILINE)
WIDTH = 100


# --- what is public ----------------------------------------------------------------------------------------------


def public_objects() -> dict[str, tuple[str, Any]]:
    """Name -> (package to import it from, object), for classes, functions, modules and constants."""
    found: dict[str, tuple[str, Any]] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found.setdefault(name, (package, getattr(module, name)))
    for package in MODULES:
        module = importlib.import_module(package)
        named = getattr(module, "__all__", ())
        for name, thing in vars(module).items():
            is_code = inspect.isfunction(thing) or inspect.isclass(thing)
            if is_code and not name.startswith("_") and (thing.__module__ == package or name in named):
                found.setdefault(name, (package, thing))
    return found


def public_classes() -> dict[str, tuple[str, type]]:
    """The classes among them."""
    return {name: found for name, found in sorted(public_objects().items()) if inspect.isclass(found[1])}


# --- pages -------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every page of the reference, and the index with their list."""
    classes = public_classes()
    made = {REFERENCE / f"{name}.md": class_page(name, *found) for name, found in classes.items()}
    made[REFERENCE / "functions.md"] = functions_page()
    lines = [f"- [{name}](reference/{name}.md): {first_sentence(cls)}" for name, (_, cls) in classes.items()]
    before, rest = INDEX.read_text(encoding="utf-8").split(BEGIN)
    listed = "\n".join([*lines, "- [Functions](reference/functions.md)"])
    made[INDEX] = f"{before}{BEGIN}\n{listed}\n{END}{rest.split(END, 1)[1]}"
    return made


def class_page(name: str, package: str, cls: type) -> str:
    """Markdown: import, bases, docstring, signature or fields, methods."""
    parts = [f"# {name}", f"`from {package} import {name}`" + _bases(cls), prose(cls)]
    fields = _own_fields(cls) if is_dataclass(cls) else []
    if any(meaning for *_, meaning in fields):
        parts += ["## Fields", _table(fields)]
    elif fields:  # explained in the docstring
        parts.append(
            _code(name, [f"{field}: {kind}" + (f" = {value}" if value else "") for field, kind, value, _ in fields])
        )
    elif inspect.isfunction(cls.__init__) and _is_ours(cls.__init__):
        parts += [_signature(name, cls.__init__), prose(cls.__init__)]
    methods = list(_methods(cls))
    if methods:
        parts.append("## Methods")
    for method, function in methods:
        parts += [f"### {method}", _signature(method, function), prose(function)]
    return _joined(parts)


def functions_page() -> str:
    """Markdown: every public function, and the constants and modules beside them."""
    parts = ["# Functions", "And the few modules and constants that are public, too."]
    for name, (package, thing) in sorted(public_objects().items()):
        if inspect.isclass(thing):
            continue
        parts += [f"## {name}", f"`from {package} import {name}`"]
        if inspect.isfunction(thing):
            parts += [_signature(name, thing), prose(thing)]
        elif inspect.ismodule(thing):
            parts.append(prose(thing))
        else:
            parts.append(f"A {type(thing).__name__}.")
    return _joined(parts)


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _bases(cls: type) -> str:
    """Which public classes of ours, or of another library, it extends."""
    public = {found: name for name, (_, found) in public_classes().items()}
    ours = [base for base in cls.__mro__[1:] if base in public]
    foreign = [base for base in cls.__bases__ if not base.__module__.startswith("trl_step") and base is not object]
    named = [f"[{public[base]}]({public[base]}.md)" for base in ours[:1]]
    named += [f"`{base.__module__.partition('.')[0]}.{base.__name__}`" for base in foreign]
    return f", a {' and '.join(named)}" if named else ""


def _is_ours(function: Any) -> bool:
    return getattr(function, "__module__", "").startswith("trl_step")


def _methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods and properties of the class, and of those of its bases that have no page."""
    public = {found for _, found in public_classes().values()}
    seen: set[str] = set()
    for base in cls.__mro__:
        if not base.__module__.startswith("trl_step") or (base in public and base is not cls):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if inspect.isfunction(function) and _is_shown(name, function) and name not in seen:
                seen.add(name)
                yield name, function


def _is_shown(name: str, function: Any) -> bool:
    """`__call__` with a docstring counts; what a dataclass writes by itself does not."""
    return _is_ours(function) and (not name.startswith("_") or (name == "__call__" and function.__doc__ is not None))


# --- signatures --------------------------------------------------------------------------------------------------


def _signature(name: str, function: Callable[..., Any]) -> str:
    parameters = _parameters(function)
    written = [_parameter(each) for each in parameters]
    named = [i for i, each in enumerate(parameters) if each.kind is each.KEYWORD_ONLY]
    if named and not any(each.kind is each.VAR_POSITIONAL for each in parameters):
        written.insert(named[0], "*")
    returns = inspect.signature(function).return_annotation
    return _code(name, written, "" if returns in (inspect.Signature.empty, None, "None") else f" -> {_type(returns)}")


def _code(name: str, parameters: list[str], arrow: str = "") -> str:
    """A code block; one parameter per line where it is long."""
    line = f"{name}({', '.join(parameters)}){arrow}"
    if len(line) > WIDTH:
        line = f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){arrow}"
    return f"```text\n{line}\n```"


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    return parameters[1:] if parameters and parameters[0].name in ("self", "cls") else parameters


def _parameter(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = star + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_type(parameter.annotation)}"
    if parameter.default is not parameter.empty:
        equals = " = " if parameter.annotation is not parameter.empty else "="
        text += equals + re.sub(r" at 0x[0-9a-f]+", "", repr(parameter.default))
    return text


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


# --- fields of dataclasses ---------------------------------------------------------------------------------------


def _own_fields(cls: type) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of the fields that the class itself declares, as its source has them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    rows = []
    for node, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            rows.append((node.target.id, ast.unparse(node.annotation), _default(node.value), _meaning(node, after)))
    return rows


def _table(fields: list[tuple[str, str, str, str]]) -> str:
    rows = [
        f"| `{name}` | `{_cell(kind)}` | {f'`{_cell(default)}`' if default else ''} | {_cell(meaning)} |"
        for name, kind, default, meaning in fields
    ]
    return "\n".join(["| field | type | default | meaning |", "|---|---|---|---|", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func) == "field"):
        return ast.unparse(value)
    options = {keyword.arg: keyword.value for keyword in value.keywords}
    factory = options.get("default_factory")
    if factory is not None:
        return {"dict": "{}", "list": "[]"}.get(ast.unparse(factory), "computed")
    return ast.unparse(options["default"]) if "default" in options else ""


def _meaning(node: ast.AnnAssign, after: ast.stmt | None) -> str:
    """The string after a field, or the help in its metadata."""
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
        return after.value.value
    helps = [
        value.value
        for part in ast.walk(node)
        if isinstance(part, ast.Dict)
        for key, value in zip(part.keys, part.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "help" and isinstance(value, ast.Constant)
    ]
    return helps[0] if helps else ""


# --- docstrings --------------------------------------------------------------------------------------------------


def own_doc(thing: Any) -> str:
    """The docstring of the thing itself, without what it inherits; "" for what a dataclass writes by itself."""
    text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
    return inspect.cleandoc(text) if text and not text.startswith(f"{getattr(thing, '__name__', '')}(") else ""


def first_sentence(thing: Any) -> str:
    """The first sentence of the docstring, on one line."""
    text = " ".join(own_doc(thing).split("\n\n", 1)[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z`])", text, maxsplit=1)[0].rstrip(".:")


def prose(thing: Any) -> str:
    """The docstring as Markdown: its sections as lists."""
    head, *sections = SECTION.split(own_doc(thing))
    parts = [head.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        parts += [f"**{title}**", _section(textwrap.dedent(body.strip("\n")))]
    return "\n\n".join(part for part in parts if part)


def _section(body: str) -> str:
    """A list entry for each `name: text`; other text as it is, without its line breaks being meant."""
    entries = [entry for entry in re.split(r"\n(?=\S)", body) if entry.strip()]
    if not any(ENTRY.match(entry) for entry in entries):
        return body.strip()
    return "\n".join(f"- {_entry(entry)}" for entry in entries)


def _entry(entry: str) -> str:
    match = ENTRY.match(entry)
    text = "\n".join("  " + line.strip() for line in entry.strip().splitlines()).strip()
    return f"`{match.group(1)}`:{text[match.end() - 1 :]}" if match else text


if __name__ == "__main__":
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for old in REFERENCE.glob("*.md"):
        old.unlink()
    for page, content in pages().items():
        page.write_text(content, encoding="utf-8")
