"""The files around the code agree with it."""

from __future__ import annotations

import re

import trl_step
from tests.markdown_pages import ROOT


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_names_the_version() -> None:
    assert f"version: {trl_step.__version__}\n" in text_of("CITATION.cff")


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    steps = text_of(".github/workflows/ci.yml")
    assert "run: .ci/run" in steps
    targets = re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE)
    assert set(re.findall(r"run: make ([a-z-]+)", steps)) <= set(targets)


def test_the_pythons_of_the_workflow_are_those_of_the_package() -> None:
    named = set(re.findall(r"Python :: (3\.\d+)", text_of("setup.py")))
    assert set(re.findall(r'"(3\.\d+)"', text_of(".github/workflows/ci.yml"))) == named
