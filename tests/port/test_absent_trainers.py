"""Trainers that are not here: a package that derives classes from them is imported, a script is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import trl_step.trainer
from tests.port.test_run import run

PACKAGE = """
from dataclasses import dataclass
from trl import KTOTrainer, ORPOConfig
from trl.trainer import CPOTrainer
from trl.trainer.kto_trainer import KTOTrainer as again
import trl.trainer.orpo_config

@dataclass
class Settings(ORPOConfig):
    size: int = 3

class Custom(KTOTrainer):
    def __init__(self, model, **kwargs):
        self.model = model

class Other(CPOTrainer):
    def __new__(cls):
        return object.__new__(cls)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "of_others.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path / "site-packages"))
    monkeypatch.delitem(sys.modules, "of_others", raising=False)
    return "of_others"


def test_a_package_that_derives_from_absent_trainers_is_imported(package: str) -> None:
    told: list[str] = []
    source = f"""
import {package} as p
def made(make):
    try:
        return make()
    except ImportError as error:
        return str(error)
errors = [made(lambda: p.Custom(1)), made(p.Settings), made(p.Other)]
same = p.KTOTrainer is p.again
"""
    try:
        names = run(source, told)
    finally:
        del sys.modules[package]
    assert names["same"]
    for error, name in zip(names["errors"], ("KTOTrainer", "ORPOConfig", "CPOTrainer"), strict=True):  # type: ignore[call-overload]
        assert error.startswith(f"trl_step has no {name}; use DPOTrainer on pairs")
    assert "in trl.experimental.orpo" in names["errors"][1]  # type: ignore[index]
    assert all("a class of which no object can be made; use DPOTrainer" in line for line in told)
    assert {line.partition(" -> ")[0].rpartition(" ")[2] for line in told} == {
        "trl_step.KTOTrainer",
        "trl_step.ORPOConfig",
        "trl_step.trainer.CPOTrainer",
        "trl.trainer.kto_trainer.KTOTrainer",
    }
    assert not any(name.startswith("kto") for name in vars(trl_step.trainer))
    with pytest.raises(AttributeError, match="use DPOTrainer on pairs"):
        getattr(trl_step, "KTOTrainer")  # noqa: B009


@pytest.mark.parametrize(
    "statement",
    ["from trl import KTOTrainer", "from trl.trainer import KTOConfig", "import trl\ntrl.KTOTrainer",
     "from trl.trainer.kto_trainer import KTOTrainer", "import trl.experimental.kto"],
)  # fmt: skip
def test_a_script_is_told_what_to_use(statement: str) -> None:
    with pytest.raises((ImportError, AttributeError), match=r"KTO\w*;? use DPOTrainer on pairs"):
        run(statement)
