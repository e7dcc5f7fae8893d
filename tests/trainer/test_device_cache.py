"""`optimize_device_cache` gives cached memory back after a step of the trainer that asks for it, and of no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.trainer.text import text_tools
from trl_step import IterativeSFTTrainer, core


@pytest.fixture
def freed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that cached memory was given back."""
    freed: list[str] = []
    monkeypatch.setattr(core, "free_device_cache", lambda: freed.append("freed"))
    return freed


def build(frees: bool, cls: type = tiny.PPOTrainer) -> Any:
    return tiny.trainer("gpt2", cls=cls, optimize_device_cache=frees, mini_batch_size=8, ppo_epochs=1)


def build_iterative(frees: bool, folder: Path) -> IterativeSFTTrainer:
    arguments = text_tools.arguments(folder)
    return IterativeSFTTrainer(tiny.gpt2(), arguments, tokenizer=text_tools.tokenizer(), optimize_device_cache=frees)


@pytest.mark.parametrize("frees", [True, False])
def test_a_step_gives_memory_back_if_asked(frees: bool, freed: list[str]) -> None:
    build(frees).step(*tiny.batch())
    assert bool(freed) == frees


@pytest.mark.parametrize("frees", [True, False])
def test_a_step_of_the_iterative_trainer_gives_memory_back_if_asked(
    frees: bool, freed: list[str], tmp_path: Path
) -> None:
    build_iterative(frees, tmp_path).step(texts=["w4 w5 w6"])
    assert bool(freed) == frees


@pytest.mark.parametrize("frees", [True, False])
def test_a_trainer_that_is_built_or_stepped_in_between_changes_nothing(
    frees: bool, freed: list[str], tmp_path: Path
) -> None:
    ours, other = build(frees), build(not frees)
    iterative = build_iterative(not frees, tmp_path)
    for stepped in (lambda: None, lambda: other.step(*tiny.batch()), lambda: iterative.step(texts=["w4 w5"])):
        stepped()
        freed.clear()
        ours.step(*tiny.batch())
        assert bool(freed) == frees


class Collecting(tiny.PPOTrainer):
    """A script's own trainer, with the decorator on a method of its own."""

    @core.PPODecorators.empty_device_cache()
    def collect(self) -> str:
        return "collected"


@pytest.mark.parametrize("frees", [True, False])
def test_a_method_of_a_script_goes_by_its_own_trainer(frees: bool, freed: list[str], tmp_path: Path) -> None:
    ours, other, iterative = build(frees, Collecting), build(not frees), build_iterative(not frees, tmp_path)
    for stepped in (lambda: None, lambda: other.step(*tiny.batch()), lambda: iterative.step(texts=["w4 w5"])):
        stepped()
        freed.clear()
        assert ours.collect() == "collected"
        assert bool(freed) == frees


@pytest.mark.parametrize("frees", [True, False])
def test_a_step_inside_of_another_trainer_s_step_changes_nothing(frees: bool, freed: list[str]) -> None:
    ours, inner = build(frees), build(not frees)
    seen: list[bool] = []

    def step_inside(_: Any) -> None:
        inner.step(*tiny.batch())
        seen.append(bool(freed))
        freed.clear()

    ours.on_step(step_inside)
    ours.step(*tiny.batch())
    assert seen == [not frees]
    assert bool(freed) == frees
