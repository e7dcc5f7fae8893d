"""A file imports from its own layer and from lower ones, and no files import each other in a circle.

The layers are those of the table in CONTRIBUTING.md. Imports are read from the source, those inside functions and under
`TYPE_CHECKING` included.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.markdown_pages import ROOT

PACKAGE = ROOT / "trl_step"
FACES = re.compile(r"trl_step/(__init__|trainer/\w+)\.py")
"""What scripts import: these may name `PPOTrainer`, as the layers above may."""


@cache
def layers() -> dict[str, int]:
    """Path in the table of CONTRIBUTING.md -> its layer."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    return {path: int(number) for number, cell in rows for path in re.findall(r"`([^`]+)`", cell)}


def layer_of(path: str) -> int:
    """That of the longest entry of the table which `path` begins with."""
    entries = [entry for entry in layers() if path == entry or (entry.endswith("/") and path.startswith(entry))]
    assert entries, f"{path} is in no layer: add it to the table of CONTRIBUTING.md"
    return layers()[max(entries, key=len)]


@cache
def modules() -> dict[str, Path]:
    """Dotted name of each module of the package -> its file."""
    return {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, known: Set[str] | Mapping[str, object]) -> Iterator[str]:
    """Modules of the package that a source imports; `from package import module` names the module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in known or node.module in known:
                    yield full if full in known else str(node.module)


@cache
def imports() -> dict[str, frozenset[str]]:
    """What each module of the package imports of it."""
    return {
        name: frozenset(imported(path.read_text(encoding="utf-8"), modules())) - {name}
        for name, path in modules().items()
    }


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """The names of a circle in `graph`, [] if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_reader_of_imports_sees_all_kinds() -> None:
    source = (
        "import a.b\nfrom a import b as c, Name\nfrom other import b\n"
        "if TYPE_CHECKING:\n    from a.d import Name\ndef f():\n    from a import e\n"
    )
    assert sorted(imported(source, {"a", "a.b", "a.d", "a.e"})) == ["a", "a.b", "a.b", "a.d", "a.e"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert not circle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert not circle(imports())


def test_imports_come_from_the_own_layer_or_a_lower_one() -> None:
    path = {name: file.relative_to(ROOT).as_posix() for name, file in modules().items()}
    wrong = [
        f"{path[name]} (layer {layer_of(path[name])}) imports {path[other]} (layer {layer_of(path[other])})"
        for name, others in imports().items()
        for other in others
        if layer_of(path[other]) > layer_of(path[name])
    ]
    assert not wrong, "\n".join(wrong)


def test_every_path_of_the_table_exists() -> None:
    assert all((ROOT / entry).exists() for entry in layers())


def annotation_of(argument: ast.arg) -> str:
    return "" if argument.annotation is None else ast.unparse(argument.annotation)


@pytest.mark.parametrize("name", modules())
def test_only_the_faces_know_the_trainer(name: str) -> None:
    """No other module imports `PPOTrainer`, and no function of one takes a whole trainer."""
    path = modules()[name]
    relative = path.relative_to(ROOT).as_posix()
    if FACES.fullmatch(relative) or layer_of(relative) >= layer_of("trl_step/port/"):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert "PPOTrainer" not in [alias.name for alias in node.names], f"line {node.lineno}"
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            taken = [one.arg for one in arguments if one.arg == "trainer" or "Trainer" in annotation_of(one)]
            assert not taken, f"line {node.lineno}: {node.name} takes {taken}"


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE.rglob("*.py")}), ids=lambda path: path.name)
def test_a_folder_can_be_seen_at_a_glance(folder: Path) -> None:
    assert len(list(folder.glob("*.py"))) <= 22
