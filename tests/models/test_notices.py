"""Whose line a warning names."""

from __future__ import annotations

import sysconfig
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest

from trl_step import PPOConfig
from trl_step.models import notices
from trl_step.models.notices import users_frame, warn_user
from trl_step.trainer.text.training_arguments import TrainingArguments


def function_of(file: str, source: str, **names: Any) -> Any:
    """The function `f` of a module that is `file`."""
    names |= {"__file__": file, "__name__": Path(file).stem}
    exec(compile(source, file, "exec"), names)
    return names["f"]


def test_a_warning_names_the_first_line_that_is_the_users() -> None:
    library = function_of(str(peft.__file__), "def f(call):\n    return call()")
    script = function_of("script.py", "def f(call, library):\n\n    return library(call)")
    with pytest.warns(UserWarning, match="look here") as told:
        script(function_of(notices.__file__, "def f(): warn('look here')", warn=warn_user), library)
    assert [(one.filename, one.lineno) for one in told] == [("script.py", 3)]


def test_code_that_names_no_file_is_of_its_module() -> None:
    names: dict[str, Any] = {"__file__": str(peft.__file__), "call": users_frame}
    exec("def f(): return call()", names)
    assert names["f"]().f_code.co_filename == __file__


def test_a_folder_beside_the_package_is_the_users() -> None:
    """As `trl_step_runs` in a clone."""
    script = function_of(f"{notices.PACKAGE}_runs/train.py", "def f(): return call()", call=users_frame)
    assert script().f_code.co_filename == f"{notices.PACKAGE}_runs/train.py"


def test_a_program_that_is_a_package_itself_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sysconfig.get_path("purelib")
    monkeypatch.setattr(notices, "OF_OTHERS", ("",))
    program = function_of(f"{folder}/program/train.py", "def f(): return call()", call=users_frame)
    assert program().f_code.co_filename == f"{folder}/program/train.py"


def test_a_line_is_warned_of_once() -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            warn_user("once for a line")
    assert len(told) == 1


def test_a_deprecated_setting_is_said_at_the_line_that_set_it() -> None:
    """Through the constructor that a dataclass makes, and however deep its checks are."""
    with pytest.warns(FutureWarning, match="forward_batch_size is deprecated") as told:
        PPOConfig(batch_size=8, forward_batch_size=4)
    assert told[0].filename == __file__
    with pytest.warns(UserWarning, match="cliprange=0.1 has no effect") as told:
        PPOConfig(policy_loss="cispo", cliprange=0.1)
    assert told[0].filename == __file__
    with pytest.warns(FutureWarning, match="evaluation_strategy is called eval_strategy") as told:
        TrainingArguments("folder", evaluation_strategy="no")
    assert told[0].filename == __file__
