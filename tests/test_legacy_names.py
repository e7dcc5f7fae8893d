"""Names and modules of TRL 0.8 to 0.11 that scripts import, beside those of the recorded 0.7.11."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests import tiny
from trl_step.commands.cli_utils import (
    DPOScriptArguments,
    RewardScriptArguments,
    SFTScriptArguments,
    TrlParser,
    init_zero_verbose,
)
from trl_step.env_utils import strtobool
from trl_step.models.utils import prepare_fsdp, unwrap_model_for_generation
from trl_step.trainer import ppo_trainer
from trl_step.trainer.utils import SIMPLE_CHAT_TEMPLATE


def test_the_module_of_ppo_has_what_release_07_imported_there() -> None:
    for home, names in ppo_trainer.IMPORTED_BY_07.items():
        for name in names:
            assert getattr(ppo_trainer, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match=r"trl_step\.trainer\.ppo_trainer' has no attribute 'nope'"):
        _ = ppo_trainer.nope


@pytest.mark.parametrize(("word", "expected"), [("yes", True), ("ON", True), ("0", False), ("False", False)])
def test_strtobool(word: str, expected: bool) -> None:
    assert strtobool(word) is expected


def test_strtobool_refuses_other_words() -> None:
    with pytest.raises(ValueError, match="'maybe' is neither yes"):
        strtobool("maybe")


@dataclass
class Run:
    model: str = field(metadata={"help": "needed"})
    steps: int = 3


@dataclass
class Data:
    rows: int = 5


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text("model: gpt2\nsteps: 7\nrows: 9\nenv:\n  TRL_STEP_TEST_WORD: here\n", encoding="utf-8")
    return str(path)


def test_settings_of_a_file_and_of_the_command_line(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRL_STEP_TEST_WORD", raising=False)
    run, data = TrlParser((Run, Data)).parse_args_and_config(["--steps", "8", "--config", config])
    assert (run.model, run.steps, data.rows) == ("gpt2", 8, 9)
    assert os.environ.pop("TRL_STEP_TEST_WORD") == "here"
    (alone,) = TrlParser(Run).parse_args_and_config(["--model", "llama"])
    assert (alone.model, alone.steps) == ("llama", 3)


def test_settings_that_nothing_knows(config: str) -> None:
    with pytest.raises(ValueError, match="the file of --config holds rows"):
        TrlParser(Run).parse_args_and_config([f"--config={config}"])
    *_, rest = TrlParser(Run).parse_args_and_config([f"--config={config}", "--x", "1"], return_remaining_strings=True)
    assert rest == ["--x", "1", "--rows", "9"]
    assert TrlParser(Run, ignore_extra_args=True).parse_args_and_config([f"--config={config}"])[0].steps == 7
    with pytest.raises(ValueError, match="no setting is called --x 1"):
        TrlParser(Run).parse_args_and_config(["--model", "a", "--x", "1"])
    with pytest.raises(ValueError, match="--config needs the path"):
        TrlParser(Run).parse_args_and_config(["--config"])


def test_the_arguments_of_the_example_scripts() -> None:
    given = ["--dataset_name", "films", "--dataset_test_split", "valid", "--steps", "2", "--model", "gpt2"]
    for arguments in (SFTScriptArguments, RewardScriptArguments, DPOScriptArguments):
        of_script, run = TrlParser((arguments, Run)).parse_args_and_config(given)
        assert (of_script.dataset_name, of_script.dataset_train_split) == ("films", "train")
        assert (of_script.dataset_test_split, of_script.gradient_checkpointing_use_reentrant) == ("valid", False)
        assert run.steps == 2
    assert SFTScriptArguments().dataset_name == "timdettmers/openassistant-guanaco"
    assert RewardScriptArguments().dataset_name == "trl-lib/ultrafeedback_binarized"
    assert DPOScriptArguments().dataset_name is None
    assert (DPOScriptArguments().sanity_check, DPOScriptArguments().ignore_bias_buffers) == (False, False)


def test_warnings_are_logged_with_the_rich_command_line(caplog: pytest.LogCaptureFixture) -> None:
    init_zero_verbose()
    try:
        warnings.warn("an old name", UserWarning, stacklevel=1)
        assert "an old name" in caplog.text
    finally:
        logging.captureWarnings(False)


def test_the_template_without_special_tokens() -> None:
    tokenizer = tiny.tokenizer()
    chat = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    text = tokenizer.apply_chat_template(
        chat, chat_template=SIMPLE_CHAT_TEMPLATE, tokenize=False, add_generation_prompt=True
    )
    assert text == "User: Hi.\n\nAssistant: Yes?\n\nAssistant:"


def test_a_model_out_of_its_wrapper() -> None:
    accelerator, model = Accelerator(cpu=True), tiny.gpt2()
    with unwrap_model_for_generation(accelerator.prepare(model), accelerator) as inner:
        assert inner is model
    frozen = prepare_fsdp(tiny.gpt2().train(), accelerator)
    assert not frozen.training
    assert isinstance(frozen, torch.nn.Module)
