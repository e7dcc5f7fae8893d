"""docs/ is true: every snippet runs, every link and path leads somewhere, every page is found from the README."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.markdown_pages import (
    DOCS,
    README,
    broken_links,
    links,
    missing_paths,
    run_snippets,
    snippets,
    write_tiny_models,
)

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
WITH_SNIPPETS = [page for page in PAGES if list(snippets((DOCS / page).read_text(encoding="utf-8")))]

SETUPS: dict[str, Callable[[], dict[str, Any]]] = {}
"""What a page needs before its first snippet, and a reader has: files in the working directory, names. By page."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_snippets_run_in_the_order_of_the_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [page])
    write_tiny_models()
    run_snippets(DOCS / page, SETUPS[page]() if page in SETUPS else None)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page: str) -> None:
    assert not broken_links(DOCS / page)
    assert not missing_paths(DOCS / page)


def test_every_page_is_linked_from_the_index_and_the_index_from_the_readme() -> None:
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in links(DOCS / "README.md")}
    assert not [page for page in PAGES if page != "README.md" and DOCS / page not in linked]
    assert "docs/README.md" in links(README)


def test_setups_belong_to_pages() -> None:
    assert set(SETUPS) <= set(WITH_SNIPPETS)
