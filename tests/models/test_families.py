"""docs/model-families.md: it lists every family, and what it says of some of them is so."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.models.families import LEFT_OUT, MAPPINGS, PAGE, families, listed, try_family

SOME = {
    ("causal", "gpt2"): "all lengths",
    ("causal", "llama"): "all lengths",
    ("causal", "mixtral"): "all lengths",
    ("causal", "mamba"): "all lengths",
    ("causal", "qwen3_5_text"): "all lengths",
    ("causal", "gemma3"): "all lengths",
    ("causal", "git"): "one length",
    ("causal", "minimax"): "one length",
    ("causal", "prophetnet"): "one length",
    ("causal", "rwkv"): "one prompt",
    ("causal", "bert"): "all lengths",
    ("seq2seq", "t5"): "all lengths",
    ("seq2seq", "bart"): "all lengths",
    ("seq2seq", "fsmt"): "all lengths",
    ("seq2seq", "qwen2_audio"): "all lengths",
}
REFUSED = {("causal", "xlnet"): "is not causal"}


def skip_unless_of_this_release() -> None:
    if f"transformers {transformers.__version__} " not in PAGE.read_text(encoding="utf-8"):
        pytest.skip("the page is that of another release of transformers")


def test_the_page_lists_every_family_of_transformers() -> None:
    skip_unless_of_this_release()
    assert listed() == set(families())


def test_families_without_numbers_are_families() -> None:
    skip_unless_of_this_release()
    assert set(LEFT_OUT) <= {name for mapping, _ in MAPPINGS.values() for name in mapping}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_some_families_do_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: a dozen models are built, stepped and sampled from (20 seconds)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [try_family(*each) for each in [*SOME, *REFUSED]]
    finally:
        torch.set_num_threads(threads)
    for row in rows[: len(SOME)]:
        assert row.numbers is not None, row
        kl, ratio, padding = row.numbers
        assert (abs(kl) < 1e-6, ratio < 1e-5, padding < 1.2e-5) == (True, True, True), row
        assert row.prompts == SOME[row.kind, row.family], row
    for row in rows[len(SOME) :]:
        assert row.numbers is None
        assert REFUSED[row.kind, row.family] in row.prompts
