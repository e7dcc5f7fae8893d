"""The documentation site: what the strict build refuses, and what its two extensions make of pages and docstrings.

`make docs` builds the site itself and runs this file; it is skipped where the extra `docs` is not installed.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.markdown_pages import ROOT

WITHOUT = "pip install -e '.[docs]'"
griffe = pytest.importorskip("griffe", reason=WITHOUT)
build = pytest.importorskip("mkdocs.commands.build", reason=WITHOUT).build
load_config = pytest.importorskip("mkdocs.config", reason=WITHOUT).load_config
Abort = pytest.importorskip("mkdocs.exceptions", reason=WITHOUT).Abort

OTHER = "# Other\n\n## A heading: with `code`\n\nText.\n"


def built(folder: Path, page: str, **settings: Any) -> Path:
    """The folder of a strictly built site of two pages, with the settings of ours."""
    docs, site = folder / "docs", folder / "site"
    docs.mkdir()
    (docs / "README.md").write_text(f"# Home\n\n{page}\n", encoding="utf-8")
    (docs / "other.md").write_text(OTHER, encoding="utf-8")
    whole = {"docs_dir": str(docs), "site_dir": str(site), "nav": ["README.md", "other.md"], **settings}
    config = load_config(str(ROOT / "mkdocs.yml"), **whole)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
    return site


def test_a_sound_page_is_built(tmp_path: Path) -> None:
    page = "[here](other.md#a-heading-with-code) [license](../LICENSE) [an example](../examples/README.md)"
    site = built(tmp_path, page)
    html = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="other.html#a-heading-with-code"' in html
    for target in re.findall(r'href="(repository/[^"#]+)"', html):
        assert (site / target).is_file()
    assert (site / "repository" / "examples" / "sentiment" / "index.html").is_file(), "linked from a linked page"
    assert "Apache License" in (site / "repository" / "LICENSE.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        "[a file](nope.md)",
        "[a file outside of docs](../nope.py)",
        "[a heading](other.md#nope)",
        "[a heading of this page](#nope)",
        "![a picture](nope.png)",
        "::: trl_step.PPOTrainers",
        "[a name][trl_step.PPOTrainers]",
    ],
)
def test_what_is_not_there_fails(page: str, tmp_path: Path) -> None:
    with pytest.raises(Abort):
        built(tmp_path, page)


def test_a_page_that_the_navigation_does_not_name_fails(tmp_path: Path) -> None:
    with pytest.raises(Abort):
        built(tmp_path, "Text.", nav=["README.md"])


def test_an_api_page_has_signature_sections_and_members(tmp_path: Path) -> None:
    site = built(tmp_path, "::: trl_step.trainer.FixedKLController\n\n::: trl_step.PPOConfig")
    html = (site / "index.html").read_text(encoding="utf-8")
    assert 'id="trl_step.trainer.FixedKLController.update"' in html
    assert 'id="trl_step.PPOConfig.advantage_estimator"' in html
    assert "trl_step.PPOConfig._check_values" not in html


# --- docstrings --------------------------------------------------------------------------------------------------


def read_as_the_site_does(docstring: str, signature: str, folder: Path) -> list[Any]:
    """Griffe's sections of a function's docstring, with our extension and the options of mkdocs.yml."""
    options = load_config(str(ROOT / "mkdocs.yml")).plugins["mkdocstrings"].config.handlers["python"]["options"]
    code = f'def function{signature}:\n    """\n{docstring}\n    """\n'
    (folder / "written.py").write_text(code, encoding="utf-8")
    extensions = griffe.load_extensions(*(ROOT / path for path in options["extensions"]))
    module = griffe.load("written", search_paths=[folder], extensions=extensions, allow_inspection=False)
    return module["function"].docstring.parse(options["docstring_style"], **options["docstring_options"])


def test_a_sentence_with_a_colon_under_returns_is_no_type(tmp_path: Path) -> None:
    docstring = (
        "    Text.\n\n    Returns:\n        rewards, and their sum: each [B, T]\n\n    Raises:\n        ValueError: no"
    )
    text, returns, raises = read_as_the_site_does(docstring, "() -> tuple[int, int]", tmp_path)
    (result,) = returns.value
    assert result.description == "rewards, and their sum: each [B, T]"
    assert str(result.annotation) == "tuple[int, int]"
    assert text.value == "Text."
    assert raises.value[0].description == "no"


def test_several_results_are_a_list(tmp_path: Path) -> None:
    docstring = "    Returns:\n        first: one, in two\n            lines\n        second, third: more"
    (returns,) = read_as_the_site_does(docstring, "() -> int", tmp_path)
    (result,) = returns.value
    assert result.description.strip() == "- `first`: one, in two\n    lines\n- `second, third`: more"


def test_attributes_for_subclasses_are_a_list(tmp_path: Path) -> None:
    attribute = "    Class attribute, for subclasses:\n        one: a, in\n            two"
    docstring = f"    Text.\n\n{attribute}\n\n    Args:\n        a: b"
    text, arguments = read_as_the_site_does(docstring, "(a) -> int", tmp_path)
    assert text.value.split("\n\n", 2)[1:] == ["**Class attribute, for subclasses:**", "\n\n- `one`: a, in\n    two"]
    assert [each.name for each in arguments.value] == ["a"]


def test_a_default_that_is_made_is_shown_as_what_is_made(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from dataclasses import field\n\n\nclass Settings:\n"
        "    kwargs: dict = field(default_factory=dict)\n    name: str = field(default_factory=lambda: 'a')\n"
        "    size: int = _Default(128)\n    rate: float = 0.1\n",
        encoding="utf-8",
    )
    extensions = griffe.load_extensions(ROOT / "docs" / "_site" / "docstrings.py")
    settings = griffe.load("made", search_paths=[tmp_path], extensions=extensions, allow_inspection=False)["Settings"]
    shown = {name: attribute.value and str(attribute.value) for name, attribute in settings.members.items()}
    assert shown == {"kwargs": "{}", "name": None, "size": "128", "rate": "0.1"}


def test_an_entry_explains_several_parameters(tmp_path: Path) -> None:
    docstring = "    Args:\n        a, b: [B, T]\n        *c: more: of it"
    (section,) = read_as_the_site_does(docstring, "(a, b, *c) -> None", tmp_path)
    assert [(each.name, each.description) for each in section.value] == [("a, b", "[B, T]"), ("*c", "more: of it")]


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "_site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_inside_of_code_stay() -> None:
    hook = loaded("repository_links")
    assert hook._linked_from("docs/x.md", "[a](../LICENSE)\n```python\n[b](../setup.py)\n```\n") == {"LICENSE"}
    assert hook._linked_from("docs/x.md", "[a](other.md) [b](https://example.org/LICENSE) [c](../examples)") == {
        "examples/README.md"
    }


def test_a_notebook_is_shown_with_its_outputs(tmp_path: Path) -> None:
    site = built(tmp_path, "[a game](../examples/notebooks/own_game.ipynb)")
    html = (site / "repository" / "examples" / "notebooks" / "own_game.ipynb.html").read_text(encoding="utf-8")
    assert "<h1 id=" in html
    assert "data:image/png;base64," in html
    assert "found within 12 turns" in html
    assert "execution_count" not in html
