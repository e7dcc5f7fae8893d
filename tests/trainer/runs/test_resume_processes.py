"""A run on two processes that is saved and goes on in new ones equals the run in one go, bit for bit.

Slow, as two processes are started, and each imports torch and transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.once import started_once
from tests.regressions.two_processes import launch
from tests.tiny import config, tokenizer, with_value_head
from tests.trainer.runs.resumed_processes import NAMES, SCRIPT
from tests.trainer.runs.resumed_runs import CASES, Rows, collate
from tests.trainer.runs.state_tools import changed
from trl_step import PPOTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return started_once(tmp_path_factory, "resumed_processes", lambda folder: launch(folder, "ddp", SCRIPT))


@pytest.fixture(scope="module")
def begun(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"begun-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def went_on(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"went-on-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_resumed_equals_uninterrupted(name: str, begun: list[dict[str, Any]], went_on: list[dict[str, Any]]) -> None:
    for whole, parts in zip(begun, went_on, strict=True):
        assert parts[name][0] == whole[name][0][CASES[name].saved_after :]
        assert changed(whole[name][1], parts[name][1]) == []
        assert all(torch.equal(value, parts[name][2][key]) for key, value in whole[name][2].items())


def test_the_processes_see_different_rows(begun: list[dict[str, Any]]) -> None:
    one, two = (whole["plain"][0][0]["rows"] for whole in begun)
    assert not set(one) & set(two)


def test_an_interrupt_of_one_process_saves_the_run_of_both(
    begun: list[dict[str, Any]], went_on: list[dict[str, Any]]
) -> None:
    assert [whole["interrupted"] for whole in begun] == [2, 2]
    for whole, parts in zip(begun, went_on, strict=True):
        assert parts["latest"] == 2
        assert parts["rest"] == whole["plain"][0][2:]


def test_a_process_that_cannot_write_is_reported_on_all_and_the_old_state_stays(begun: list[dict[str, Any]]) -> None:
    (one, loaded_one), (two, loaded_two) = (whole["failed"] for whole in begun)
    assert two == "TypeError: most_samples is a object, which JSON and safetensors do not hold"
    assert one == f"RuntimeError: process 1: {two}"
    assert (loaded_one, loaded_two) == (0, 0)


def test_memory_that_runs_out_on_one_process_changes_no_number(begun: list[dict[str, Any]]) -> None:
    one, two = (whole["little memory"] for whole in begun)
    assert (one["warned"], two["warned"]) == (0, 1)
    for name, weight in one["little"].items():
        assert torch.equal(weight, two["little"][name])
        torch.testing.assert_close(weight, one["plenty"][name], rtol=0, atol=1e-5)


def test_a_damaged_file_of_one_process_is_reported_on_all(went_on: list[dict[str, Any]]) -> None:
    (one, steps_one), (two, steps_two) = (parts["damaged"] for parts in went_on)
    assert "is damaged: process-1.json has" in one
    assert one.removeprefix("ValueError: ") in two
    assert (steps_one, steps_two) == (0, 0)


def test_another_number_of_processes_is_refused(folder: Path, went_on: list[dict[str, Any]]) -> None:
    options = {"ppo_epochs": 2, "horizon": 50, "target": 0.1}
    model = with_value_head("gpt2", dropout=0.1)
    alone = PPOTrainer(config(**options), model, None, tokenizer(), Rows(), data_collator=collate)
    with pytest.raises(ValueError, match="processes: 2 in the state, 1 here"):
        alone.load_state(folder / "between two passes")
