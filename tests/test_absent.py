"""Names of TRL that are not here: the error says what to use instead."""

from __future__ import annotations

from pathlib import Path

import pytest

import trl_step
from trl_step.absent import INSTEAD
from trl_step.port.command_line import main


@pytest.mark.parametrize("name", INSTEAD)
def test_an_absent_name_says_what_to_use(name: str) -> None:
    with pytest.raises(ImportError, match=f"trl_step has no {name}; use "):
        exec(f"from trl_step import {name}")
    assert name not in dir(trl_step)


@pytest.mark.parametrize(
    ("name", "home"),
    [("ConstantLengthDataset", "trainer"), ("AdaptiveKLController", "trainer"), ("LengthSampler", "core"),
     ("is_rich_available", "import_utils"), ("EnvironmentRunner", "environment"), ("MissingEosPenalty", "extras")],
)  # fmt: skip
def test_a_name_of_another_module_says_where_it_is(name: str, home: str) -> None:
    with pytest.raises(ImportError, match=f"it is in trl_step.{home}: from trl_step.{home} import {name}"):
        exec(f"from trl_step import {name}")
    exec(f"from trl_step.{home} import {name}")


def test_a_name_of_another_package_than_trainer_says_where_it_is() -> None:
    with pytest.raises(ImportError, match=r"it is in trl_step\.core: from trl_step\.core import LengthSampler"):
        exec("from trl_step.trainer import LengthSampler")


@pytest.mark.parametrize("name", ["GRPOTrainer", "LengthSampler"])
def test_packages_can_be_asked_whether_they_have_a_name(name: str) -> None:
    for package in (trl_step, trl_step.trainer):
        assert not hasattr(package, name)
    with pytest.raises(AttributeError, match=f"trl_step has no {name}; "):
        getattr(trl_step, name)


def test_a_name_that_nobody_knows_is_pythons_own_error() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Nope' from 'trl_step'"):
        exec("from trl_step import Nope")
    assert not hasattr(trl_step, "Nope")


def test_the_porting_kit_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "old.py"
    script.write_text("from trl import GRPOTrainer, Nope\n")
    assert main(["--check", str(script)]) == 1
    told = capsys.readouterr().out
    assert "old.py:1: trl_step has no GRPOTrainer; use PPOTrainer" in told
    assert "old.py:1: trl_step has no Nope: to be done by hand" in told
