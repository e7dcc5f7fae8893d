"""docs/ is true: every snippet runs, every link and path leads somewhere, every page is found from the README.

So are the docstrings that the site's API pages are made of; `tests/test_site.py` builds the site.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI
from transformers import AutoTokenizer

from tests import tiny_diffusion
from tests.markdown_pages import (
    DOCS,
    README,
    ROOT,
    broken_links,
    directives,
    links,
    missing_paths,
    run_code,
    run_snippets,
    snippets,
    write_tiny_models,
)
from tests.public_names import MODULES, documented, members, public_objects
from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
LARGEST_PLOT = 100_000
"""Bytes."""
WITH_SNIPPETS = [page for page in PAGES if list(snippets((DOCS / page).read_text(encoding="utf-8")))]


class GuessTheNumber:
    """An environment for the snippet of `EnvironmentRunner`."""

    def reset(self, task: int) -> str:
        self.number = task
        return "Guess: "

    def step(self, action_text: str) -> tuple[str, float, bool, dict[str, Any]]:
        return "Again: ", float(str(self.number) in action_text), False, {}


class Nim:
    """A game for the snippet of `GameRunner`: each of two players has one turn, and the first one wins."""

    def reset(self, num_players: int, seed: Any = None) -> None:
        self.player = -1

    def get_observation(self) -> tuple[int, str]:
        self.player += 1
        return self.player, "Take: "

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        return self.player == 1, {}

    def close(self) -> tuple[dict[int, float], dict[str, Any]]:
        return {0: 1.0, 1: -1.0}, {}


def ask(client: OpenAI) -> None:
    """An agent for the snippet of `serve`."""
    messages: Any = [{"role": "user", "content": "What is 1+2?"}]
    client.chat.completions.create(model="policy", messages=messages, max_tokens=4, n=2)


def what_docstrings_take_for_granted() -> dict[str, Any]:
    """All public names, and what a script has by the time it reads a docstring: a trainer, a scored batch, a file."""
    tokenizer = AutoTokenizer.from_pretrained("gpt2")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2")
    trainer = PPOTrainer(PPOConfig(batch_size=16, mini_batch_size=16), model, None, tokenizer)
    texts = ["The film was", "I think"] * 8
    queries = [torch.tensor(tokenizer(text).input_ids) for text in texts]
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4)
    scores = [float(i) for i in range(16)]
    stats = trainer.step(queries, responses, scores)
    Path("stats.jsonl").write_text('{"objective/kl": 0.5}\n', encoding="utf-8")
    public = {name: thing for name, (_, thing) in public_objects().items()}
    games = {"GuessTheNumber": GuessTheNumber, "Nim": Nim}
    own = {"json": json, **games, "sentiment": lambda texts, **columns: [1.0] * len(texts), "OpenAI": OpenAI,
           "work": ask, "rewards": defaultdict(float)}  # fmt: skip
    batch = {"query": texts, "response": texts}
    return {**public, **own, "tokenizer": tokenizer, "model": model, "ref_model": None, "trainer": trainer,
            "texts": texts, "queries": queries, "responses": responses, "scores": scores, "stats": stats,
            "batch": batch}  # fmt: skip


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    "diffusion.md": lambda: tiny_diffusion.pipeline().save_pretrained("stable-diffusion") or {},
}
"""What a page needs before its first snippet, and a reader has: files in the working directory, names. By page."""

WRITTEN = {
    "how-to.md": ("my-adapter/adapter_model.safetensors", "my-model/model.safetensors", "runs/my-run/state/*"),
    "logging.md": ("runs/**/events.out.tfevents*",),
}
"""Files that are there after the last snippet, as patterns, by page."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", WITH_SNIPPETS)
def test_snippets_run_in_the_order_of_the_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [page])
    write_tiny_models()
    run_snippets(DOCS / page, SETUPS[page]() if page in SETUPS else None)
    for pattern in WRITTEN.get(page, ()):
        assert list(tmp_path.glob(pattern)), f"no {pattern}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page: str) -> None:
    assert not broken_links(DOCS / page)
    assert not missing_paths(DOCS / page)


def test_every_page_is_linked_from_the_index_of_its_folder_and_the_index_from_the_readme() -> None:
    indexes = [DOCS / page for page in PAGES if page.endswith("README.md")]
    linked = {(index.parent / target.partition("#")[0]).resolve() for index in indexes for target in links(index)}
    assert not [page for page in PAGES if page != "README.md" and DOCS / page not in linked]
    assert "docs/README.md" in links(README)


def test_plots_are_shown_and_small() -> None:
    shown = {(DOCS / page).parent / target for page in PAGES for target in links(DOCS / page)}
    shown |= {README.parent / target for target in links(README)}
    for plot in (DOCS / "plots").glob("*"):
        assert plot in shown, f"no page shows {plot.name}"
        assert plot.stat().st_size < LARGEST_PLOT


def test_setups_belong_to_pages() -> None:
    assert set(SETUPS) <= set(WITH_SNIPPETS)


# --- docstrings and the API pages -------------------------------------------------------------------------------


def docstrings() -> dict[str, tuple[Any, str]]:
    """Qualified name -> (object, docstring) of everything public, each docstring once."""
    found: dict[str, tuple[Any, str]] = {}
    for _, thing in public_objects().values():
        for path, part in documented(thing):
            is_ours = inspect.isclass(part) or inspect.isfunction(part) or inspect.ismodule(part)
            if is_ours and part.__doc__:
                found.setdefault(path, (part, inspect.cleandoc(part.__doc__)))
    return found


DOCSTRINGS = docstrings()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, (_, doc) in DOCSTRINGS.items() if list(snippets(doc))])
def test_snippets_of_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_models()
    run_code(snippets(DOCSTRINGS[name][1]), name, what_docstrings_take_for_granted())


def entries(doc: str, section: str) -> list[str]:
    """The names before the colons of a docstring's section."""
    match = re.search(rf"^{section}:\n((?: .*\n?|\n)+)", doc, re.MULTILINE)
    body = match.group(1) if match else ""
    return [name for line in re.findall(r"^    (\S[^:]*):", body, re.MULTILINE) for name in line.split(", ")]


def test_docstrings_name_parameters_that_are_there() -> None:
    wrong = []
    for path, (thing, doc) in DOCSTRINGS.items():
        if inspect.ismodule(thing) or not (named := entries(doc, "Args")):
            continue
        parameters = inspect.signature(thing).parameters
        takes_more = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
        wrong += [f"{path}: {name}" for name in named if name.lstrip("*") not in parameters and not takes_more]
    assert not wrong


def test_every_public_name_is_on_an_api_page() -> None:
    shown = []
    for page in sorted((DOCS / "api").glob("*.md")):
        for path in directives(page):
            package, _, name = path.rpartition(".")
            thing = getattr(importlib.import_module(package), name)
            shown += [name, *(members(path) if path in MODULES else ())]
            assert thing is not None
    missing = set(public_objects()) - set(shown) - {module.rpartition(".")[2] for module in MODULES}
    assert not missing, "add them to a page of docs/api/"


def test_the_navigation_of_the_site_names_every_page() -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", settings, re.MULTILINE)
    assert sorted(named) == PAGES, "name every page of docs/ once in the navigation of mkdocs.yml"
