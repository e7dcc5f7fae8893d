"""README.md is true: its snippets run, its tables are those of the code, its links and paths lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import trl_step
from tests.readme_tables import README, with_metric_table
from trl_step.ppo.stats import LOGGED_BY_LOG_STATS, STATS

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MAX_LOOP_LINES = 30
FIRST_SCREEN = 55
"""Lines, of which a wide window shows all."""

# --- snippets ------------------------------------------------------------------------------------------------


def snippets() -> Iterator[tuple[int, str]]:
    """Every Python snippet, and the number of lines in front of it."""
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        yield TEXT.count("\n", 0, match.start(1)), match.group(1)


def write_tiny_models() -> None:
    """The one place where the README's model names get a meaning: folders of the same names in the working directory.

    A path that exists is never looked up on a hub, so the snippets run as they stand, with models of a few thousand
    weights and a tokenizer of single bytes.
    """
    sizes = {"vocab_size": len(byte_tokenizer()), "bos_token_id": 1, "eos_token_id": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **sizes))
    t5 = T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0,
                 vocab_size=sizes["vocab_size"], eos_token_id=1)
    )  # fmt: skip
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    classifier = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=sizes["vocab_size"], dim=32, n_layers=1, n_heads=2, hidden_dim=64, id2label=labels)
    )
    for name, model, pad in (
        ("gpt2", gpt2, None),  # as the original, it has no padding token
        ("google/flan-t5-small", t5, "<pad>"),
        ("lvwerra/distilbert-imdb", classifier, "<pad>"),
    ):
        model.save_pretrained(name)
        byte_tokenizer(pad_token=pad).save_pretrained(name)


def byte_tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    """One token per byte, so that it knows every text."""
    tokens = ["<pad>", "<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", **special)


@pytest.mark.filterwarnings("ignore")
def test_snippets_run_in_the_order_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    write_tiny_models()
    names: dict[str, Any] = {"__name__": "readme"}
    for lines_before, code in snippets():
        # a traceback points at the line of the README
        exec(compile("\n" * lines_before + code, str(README), "exec"), names)
    assert set(names["stats"]) == {stat.key for stat in STATS}
    assert (tmp_path / "my-model" / "model.safetensors").is_file()
    assert list((tmp_path / "runs").rglob("events.out.tfevents*"))


def test_loop_is_short_and_in_the_first_screen() -> None:
    lines_before, code = next(snippets())
    assert len(code.splitlines()) <= MAX_LOOP_LINES
    assert lines_before + len(code.splitlines()) <= FIRST_SCREEN
    assert "make demo" in TEXT[: TEXT.index("```python")]
    assert "make test" in TEXT[: TEXT.index("```python")]


# --- tables --------------------------------------------------------------------------------------------------


def test_metric_table_is_that_of_the_code() -> None:
    assert with_metric_table(TEXT) == TEXT, "run python -m tests.readme_tables"
    for stat in (*STATS, *LOGGED_BY_LOG_STATS):
        assert f"| `{stat.key}` |" in TEXT


def test_every_public_name_is_mentioned() -> None:
    missing = [name for name in trl_step.__all__ if not re.search(rf"\b{name}\b", TEXT)]
    assert not missing


def test_every_setting_that_is_new_is_named() -> None:
    settings = [field.name for field in fields(trl_step.PPOConfig)]
    new = settings[settings.index("dataset_num_proc") + 1 :]
    assert "exact_v07" in new
    assert not [name for name in new if f"`{name}`" not in TEXT]


def test_new_imports_of_the_porting_table_work() -> None:
    statements = re.findall(r"`from (trl_step[\w.]*) import ([\w, ]+)`", TEXT)
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
    """A place that is tagged, or that asks for `exact_v07`, stands in the last column of the porting tables."""
    named = Counter(re.findall(r"`([\w/]+\.py:[\w.]*)`", TEXT))
    tagged = places_in_the_code(lambda line: "differs from v0.7:" in line)
    asking = places_in_the_code(lambda line: re.search(r"\b\w+\.exact_v07\b(?! =)", line) is not None)
    assert set(named) == set(tagged) | set(asking)
    assert all(named[place] >= count for place, count in tagged.items()), "two differences in one function are two rows"


def test_rows_with_an_id_have_a_test() -> None:
    tests = [path.name for path in (ROOT / "tests" / "regressions").glob("test_*.py")]
    for cell in re.findall(r"^\| ([A-Z]\d[^|]*) \|", TEXT, re.MULTILINE):
        for row in cell.split(", "):
            prefix = f"test_{row[0].lower()}{int(row[1:]):02d}_"
            assert any(name.startswith(prefix) for name in tests), f"row {row} has no {prefix}*.py"


# --- links, paths, commands ----------------------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_exist(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = {anchor(title) for title in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", prose):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (ROOT / target).exists(), target
    for path in re.findall(r"`((?:trl_step|tests|examples|benchmarks)/[\w./-]*)`", prose):
        assert (ROOT / path).exists(), path


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def test_make_targets_are_those_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        named |= set(re.findall(r"`?make ([a-z-]+)\b", (ROOT / document).read_text(encoding="utf-8")))
    assert named & targets == targets - {"help"}


def test_changelog_has_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## Release {re.escape(trl_step.__version__)}\b", changelog, re.MULTILINE)
