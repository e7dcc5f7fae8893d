"""A sound first run prints bars, its results, and nothing that the user need not know."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.scripts import SHORT_RUNS
from tests.markdown_pages import README, ROOT, snippets, write_tiny_models

BAR = re.compile(r"[^|]*\d+%\|[^|]*\| [\d.]+/[\d.]+ \[[^\]]*\]|[^|]*\d+ examples \[[^\]]*\]")
HEAD = re.compile(r"\S+:\d+: UserWarning: \S+ holds no value head: it starts from random weights, [\w ]+")
OF_BITSANDBYTES = "Failed to load CPU gemm_4bit_forward from kernels-community"
"""It says so where it is installed, on processors with bfloat16, when transformers' Trainer is imported."""


def said_besides_bars(words: list[str], folder: Path) -> list[str]:
    """What a fresh process with the arguments `words` writes to stderr, line by line, without bars."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "datasets")}
    environment.pop("PYTHONWARNINGS", None)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = re.split(r"[\r\n]+", done.stderr.replace("\x1b[A", ""))
    said = [line.rstrip() for line in lines if line.strip()]
    return [line for line in said if not BAR.fullmatch(line) and OF_BITSANDBYTES not in line]


def without_value_heads(lines: list[str]) -> list[str]:
    """The lines without the warnings that a model starts without a value head, each with its line of code."""
    heads = [i for i, line in enumerate(lines) if HEAD.fullmatch(line)]
    return [line for i, line in enumerate(lines) if i not in heads and i - 1 not in heads]


@pytest.mark.slow
def test_the_loop_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow: a process imports torch and transformers. Two steps: more of so small a model give reason to warn."""
    monkeypatch.chdir(tmp_path)
    write_tiny_models()
    code = next(snippets(README.read_text(encoding="utf-8")))[1]
    assert "range(10)" in code
    Path("loop.py").write_text(code.replace("range(10)", "range(2)"), encoding="utf-8")
    said = said_besides_bars(["loop.py"], tmp_path)
    assert len(said) == 2, "\n".join(said)
    assert without_value_heads(said) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", SHORT_RUNS)
def test_the_examples(family: str, tmp_path: Path) -> None:
    """Slow: a process imports torch and transformers, builds models and trains."""
    said = without_value_heads(said_besides_bars(["-m", "tests.examples.scripts", str(tmp_path), family], tmp_path))
    assert said == []
