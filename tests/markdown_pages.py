"""What README.md and docs/ share in the tests: their snippets are run, their links and paths are looked up.

A page's Python snippets run from top to bottom in one namespace, in a temporary folder where the model names that the
pages use are small models (`write_tiny_models`). A page may open with lines that only the test needs: see `SETUPS` in
`tests/test_docs.py`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

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

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = ROOT / "docs"

# --- snippets ------------------------------------------------------------------------------------------------


def snippets(text: str) -> Iterator[tuple[int, str]]:
    """Every Python snippet of a page, and the number of lines before it."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, match.start(1)), match.group(1)


def run_snippets(page: Path, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the snippets of `page` in the working directory and return what they have named.

    `names` is what is there before the first of them. A traceback points at the line of the page.
    """
    return run_code(snippets(page.read_text(encoding="utf-8")), str(page), {"__name__": page.stem} | (names or {}))


def run_code(pieces: Iterable[tuple[int, str]], place: str, names: dict[str, Any]) -> dict[str, Any]:
    """Run pieces of code, with the lines before each, in the namespace `names`, and return it."""
    torch.manual_seed(0)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        for lines_before, code in pieces:
            exec(compile("\n" * lines_before + code, place, "exec"), names)
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # a page may set a handler
    return names


def write_tiny_models() -> None:
    """The one place where the pages' model names get a meaning: folders of the same names in the working directory.

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


# --- links and paths -----------------------------------------------------------------------------------------


def prose(text: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets of all links, images included."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8")))


def broken_links(page: Path) -> list[str]:
    """Targets in this project that do not exist: files, and headings of Markdown files."""
    broken = []
    for target in links(page):
        if "://" in target:
            continue
        file, _, heading = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (heading and heading not in headings(path)):
            broken.append(target)
    return broken


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    return {anchor(title) for title in re.findall(r"^#+ (.+)$", prose(page.read_text(encoding="utf-8")), re.MULTILINE)}


def anchor(title: str) -> str:
    """What GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def directives(page: Path) -> list[str]:
    """Dotted names that an API page shows the docstrings of."""
    return re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)


def missing_paths(page: Path) -> list[str]:
    """Paths of the repository, in backticks, that do not exist."""
    named = re.findall(r"`((?:trl_step|tests|examples|benchmarks|docs)/[\w./-]*)`", prose(page.read_text("utf-8")))
    return [path for path in named if not (ROOT / path).exists()]
