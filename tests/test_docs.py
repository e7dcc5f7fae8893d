"""docs/ is true: every snippet runs, every link and path leads somewhere, every page is found from the README."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from tests import tiny_diffusion
from tests.class_pages import INDEX, REFERENCE, pages, public_objects
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


def what_docstrings_take_for_granted() -> dict[str, Any]:
    """All public names, and what a script has by the time it reads a docstring: a trainer, a scored batch, a file."""
    tokenizer = AutoTokenizer.from_pretrained("gpt2")
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
    own = {"json": json, **games, "sentiment": lambda texts, **columns: [1.0] * len(texts)}
    batch = {"query": texts, "response": texts}
    return {**public, **own, "tokenizer": tokenizer, "model": model, "ref_model": None, "trainer": trainer,
            "texts": texts, "queries": queries, "responses": responses, "scores": scores, "stats": stats,
            "batch": batch}  # fmt: skip


SETUPS: dict[str, Callable[[], dict[str, Any]]] = {
    page: what_docstrings_take_for_granted for page in WITH_SNIPPETS if page.startswith("reference/")
}
SETUPS["diffusion.md"] = lambda: tiny_diffusion.pipeline().save_pretrained("stable-diffusion") or {}
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


def test_plots_are_shown_and_small() -> None:
    shown = {(DOCS / page).parent / target for page in PAGES for target in links(DOCS / page)}
    for plot in (DOCS / "plots").glob("*"):
        assert plot in shown, f"no page shows {plot.name}"
        assert plot.stat().st_size < LARGEST_PLOT


def test_setups_belong_to_pages() -> None:
    assert set(SETUPS) <= set(WITH_SNIPPETS)


def test_reference_is_that_of_the_code() -> None:
    made = pages()
    assert set(REFERENCE.glob("*.md")) == set(made) - {INDEX}, "run python -m tests.class_pages"
    stale = [page.name for page, text in made.items() if page.read_text(encoding="utf-8") != text]
    assert not stale, "run python -m tests.class_pages"


def test_every_public_name_has_a_heading() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(REFERENCE.glob("*.md")))
    headings = set(re.findall(r"^##? (\w+)$", text, re.MULTILINE))
    assert not set(public_objects()) - headings
