"""A running script reads settings that `TrainingArguments` no longer has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import transformers

import trl_step
from tests.port.test_run import run
from trl_step.port.old.reads import DEFAULTS, FROM_OTHERS
from trl_step.trainer.text.training_arguments import OLD_NAMES, RENAMED

SCRIPT = """
from transformers import TrainingArguments
from trl import RewardConfig
plain = TrainingArguments("o", {given}, use_cpu=True)
ours = RewardConfig("o", {given}, use_cpu=True)
read = [plain.{name}, ours.{name}]
again = [plain.{name} for _ in range(2)]
"""


def read(name: str, given: str) -> tuple[list[object], list[str]]:
    told: list[str] = []
    values = run(SCRIPT.format(name=name, given=given), told)["read"]
    return values, [line for line in told if "is read" in line]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("evaluation_strategy", "eval_strategy='epoch'", "epoch"),
        ("evaluation_strategy", "evaluation_strategy='epoch'", "epoch"),
        ("no_cuda", "seed=1", True),
        ("warmup_ratio", "warmup_ratio=0.1", 0.1),
        ("warmup_ratio", "warmup_steps=5", 0.0),
        ("adafactor", "adafactor=True", True),
        ("adafactor", "seed=1", False),
        ("group_by_length", "group_by_length=True", True),
        ("include_inputs_for_metrics", "include_inputs_for_metrics=True", True),
        ("split_batches", "split_batches=True", True),
        ("save_safetensors", "seed=1", True),
        ("past_index", "seed=1", -1),
        ("logging_dir", "seed=1", None),
    ],
)
def test_what_a_script_reads(name: str, given: str, value: object) -> None:
    values, told = read(name, given)
    assert values == [value, value]
    assert len(told) == 2, "once for each class"
    said = f"the value of {RENAMED[name]}" if name in RENAMED else f"{value!r}, "
    assert f".{name} is read -> {said}" in told[0]


def test_a_token_is_not_shown() -> None:
    values, told = read("push_to_hub_token", "hub_token='secret'")
    assert values == ["secret", "secret"]
    assert "secret" not in "".join(told)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_script_gave_is_read_back() -> None:
    told: list[str] = []
    source = (
        "from transformers import TrainingArguments as T\nvalue = T('o', logging_dir='logs', no_cuda=True).logging_dir"
    )
    assert run(source, told)["value"] == "logs"
    assert not [line for line in told if "is read" in line]


@pytest.mark.parametrize(
    ("steps", "ratio", "steps_after"), [(100, 0.0, 100), (100, 0.1, 100), (0, 0.1, 0.1), (0.1, 0.05, 0.05)]
)
def test_warmup_steps_count_before_a_ratio_that_is_set(steps: float, ratio: float, steps_after: float) -> None:
    source = f"args = TrainingArguments('o', warmup_steps={steps}, use_cpu=True)\nargs.warmup_ratio = {ratio}"
    assert run(f"from transformers import TrainingArguments\n{source}")["args"].warmup_steps == steps_after


def test_every_old_name_is_answered() -> None:
    assert set(RENAMED) | set(FROM_OTHERS) | set(DEFAULTS) <= set(OLD_NAMES)
    assert set(FROM_OTHERS).isdisjoint(DEFAULTS)


def test_libraries_see_the_class_as_it_is() -> None:
    source = """
import dataclasses
from transformers import TrainingArguments
from trl import RewardConfig
plain, ours = TrainingArguments("o", use_cpu=True), RewardConfig("o", use_cpu=True)
has = [hasattr(TrainingArguments, "no_cuda"), RewardConfig.no_cuda]
seen = [plain.to_dict(), ours.to_dict(), dataclasses.asdict(ours), str(plain)]
"""
    told: list[str] = []
    names = run(source, told)
    assert told == []
    assert names["has"] == [False, None]
    assert "no_cuda" not in names["seen"][0]
    assert names["seen"][2]["no_cuda"] is None
    assert not hasattr(transformers.TrainingArguments, "no_cuda")
    assert trl_step.RewardConfig.no_cuda is None
    assert "no_cuda" in {field.name for field in dataclasses.fields(trl_step.RewardConfig)}


DERIVED = """
from dataclasses import dataclass
from transformers import HfArgumentParser, TrainingArguments
from trl import SFTConfig
from trl.commands.cli_utils import TrlParser
@dataclass
class Own(SFTConfig):
    mine: int = 3
@dataclass
class Script:
    name: str = "x"
old = {{"output_dir": "o", "evaluation_strategy": "epoch", "no_cuda": True, "logging_dir": "logs", "warmup_ratio": 0.1}}
made = [
    Own(**old), SFTConfig(**old),
    *HfArgumentParser(Own).parse_args_into_dataclasses({words!r}),
    *HfArgumentParser(SFTConfig).parse_args_into_dataclasses({words!r}),
    TrlParser((Script, TrainingArguments)).parse_args_and_config(["--config", {path!r}])[1],
    TrlParser((Script, Own)).parse_args_and_config(["--config", {path!r}])[1],
]
found = [(str(a.eval_strategy.value), a.use_cpu, a.logging_dir, a.get_warmup_steps(100)) for a in made]
"""


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_classes_that_derive_from_ours_and_files_of_settings(tmp_path: Path) -> None:
    words = ["--output_dir", "o", "--evaluation_strategy", "epoch", "--no_cuda", "--logging_dir", "logs",
             "--warmup_ratio", "0.1"]  # fmt: skip
    path = tmp_path / "settings.yaml"
    path.write_text("""output_dir: o
evaluation_strategy: epoch
no_cuda: true
logging_dir: logs
warmup_ratio: 0.1
warmup_steps: 0
""")
    told: list[str] = []
    found = run(DERIVED.format(words=words, path=str(path)), told)["found"]
    assert found == [("epoch", True, "logs", 10)] * 6
    assert any(line.startswith("old.py:14: Own.evaluation_strategy is set -> eval_strategy") for line in told)
    assert all(line.startswith("old.py:") for line in told)
