"""README.md is true: its snippets run, its links lead somewhere; its tables and those for porting are the code's."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import trl_step
from tests.markdown_pages import DOCS, ROOT, broken_links, missing_paths, run_snippets, snippets, write_tiny_models
from tests.readme_tables import PAGES, PORTING, README, with_tables
from trl_step.algorithms.stats import LOGGED_BY_LOG_STATS, STATS, WITH_VALUES

TEXT = README.read_text(encoding="utf-8")
PORTING_TEXT = PORTING.read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MAX_LINES = 200
MAX_LOOP_LINES = 30
FIRST_SCREEN = 55
"""Lines, of which a wide window shows all."""

OF_THE_DEFAULTS = (WITH_VALUES, "a `policy_loss` that clips")
"""Of the keys that are not always there, those that the default settings have."""

# --- snippets ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_snippets_run_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_models()
    names = run_snippets(README)
    assert set(names["stats"]) == {stat.key for stat in STATS if stat.when in ("", *OF_THE_DEFAULTS)}
    assert (tmp_path / "my-model" / "model.safetensors").is_file()


def test_the_page_is_short() -> None:
    assert len(TEXT.splitlines()) <= MAX_LINES


def test_loop_is_short_and_in_the_first_screen() -> None:
    lines_before, code = next(snippets(TEXT))
    assert len(code.splitlines()) <= MAX_LOOP_LINES
    assert lines_before + len(code.splitlines()) <= FIRST_SCREEN
    assert "make demo" in TEXT[: TEXT.index("```python")]
    assert "make test" in TEXT[: TEXT.index("```python")]


# --- tables --------------------------------------------------------------------------------------------------


def test_tables_are_those_of_the_code() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert with_tables(text) == text, "run python -m tests.readme_tables"
    logging = (DOCS / "logging.md").read_text(encoding="utf-8")
    for stat in (*STATS, *LOGGED_BY_LOG_STATS):
        assert f"| `{stat.key}` |" in logging


def test_every_setting_that_is_new_is_named() -> None:
    settings = [field.name for field in fields(trl_step.PPOConfig)]
    new = settings[settings.index("dataset_num_proc") + 1 :]
    assert "exact_v07" in new
    assert not [name for name in new if f"`{name}`" not in PORTING_TEXT]


def test_new_imports_of_the_porting_table_work() -> None:
    statements = re.findall(r"`from (trl_step[\w.]*) import ([\w, ]+)`", PORTING_TEXT)
    assert len(statements) >= 10
    for module, names in statements:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"from {module} import {name}"


def places_in_the_code(matches: Callable[[str], bool]) -> Counter[str]:
    """How many lines match in each `file:function` of the package."""
    package = ROOT / "trl_step"
    places: Counter[str] = Counter()
    for path in sorted(package.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        spans = list(functions_of(ast.parse(source)))
        for number, line in enumerate(source.splitlines(), start=1):
            if matches(line):
                names = [name for name, first, last in spans if first <= number <= last]
                places[f"{path.relative_to(package).as_posix()}:{names[0] if names else ''}"] += 1
    return places


def functions_of(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Qualified name, first and last line of every function and method; functions inside functions are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from functions_of(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node.lineno, node.end_lineno or node.lineno


def test_every_difference_in_the_code_is_a_row_and_the_reverse() -> None:
    """A place that is tagged, or that asks for `exact_v07`, is in the last column of the porting tables."""
    named = Counter(re.findall(r"`([\w/]+\.py:[\w.]*)`", PORTING_TEXT))
    tagged = places_in_the_code(lambda line: "differs from v0.7:" in line)
    asking = places_in_the_code(lambda line: re.search(r"\b\w+\.exact_v07\b(?! =)", line) is not None)
    assert set(named) == set(tagged) | set(asking)
    assert all(named[place] >= count for place, count in tagged.items()), "two differences in one function are two rows"


def test_rows_with_an_id_have_a_test() -> None:
    tests = [path.name for path in (ROOT / "tests" / "regressions").glob("test_*.py")]
    for cell in re.findall(r"^\| ([A-Z]\d[^|]*) \|", PORTING_TEXT, re.MULTILINE):
        for row in cell.split(", "):
            prefix = f"test_{row[0].lower()}{int(row[1:]):02d}_"
            assert any(name.startswith(prefix) for name in tests), f"row {row} has no {prefix}*.py"


# --- links, paths, commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_exist(document: str) -> None:
    assert not broken_links(ROOT / document)
    assert not missing_paths(ROOT / document)


def test_make_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        named |= set(re.findall(r"`?make ([a-z-]+)\b", (ROOT / document).read_text(encoding="utf-8")))
    assert named & targets == targets - {"help"}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## Release {re.escape(trl_step.__version__)}\b", changelog, re.MULTILINE)
