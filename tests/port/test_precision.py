"""An `Accelerator()` beside training arguments that choose a precision: running, and in the text of a script."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState

from tests.port.test_run import run
from trl_step.port.old.precision import Precision
from trl_step.port.releases import UNKNOWN_ORIGIN
from trl_step.port.rewrite import rewritten, undecided


@pytest.fixture(autouse=True)
def a_process_without_accelerator() -> Iterator[None]:
    kept = [(each, dict(each._shared_state)) for each in (AcceleratorState, GradientState)]
    for each, _ in kept:
        each._shared_state.clear()
    yield
    for each, before in kept:
        each._shared_state.clear()
        each._shared_state.update(before)


HEAD = """
import torch
from accelerate import Accelerator
from transformers import Trainer, TrainingArguments
def arguments(**precision):
    return TrainingArguments({folder!r}, use_cpu=True, report_to=[], **precision)
def trainer(arguments):
    return Trainer(torch.nn.Linear(2, 1), arguments)
"""


def test_it_follows_the_training_arguments(tmp_path: Path) -> None:
    told: list[str] = []
    source = "args = arguments(bf16=True)\nfor _ in range(2):\n    own = Accelerator()\nits = trainer(args).accelerator"
    names: dict[str, Any] = run(HEAD.format(folder=str(tmp_path)) + source, told)
    assert names["own"].mixed_precision == names["its"].mixed_precision == "bf16"
    assert told == ["old.py:11: Accelerator() -> mixed_precision='bf16' (TrainingArguments said so before)"]


@pytest.mark.parametrize(
    "source",
    ["args = arguments()\nown = Accelerator()", "args = arguments(bf16=True)\nown = Accelerator(mixed_precision='no')"],
)
def test_others_are_left_alone(source: str, tmp_path: Path) -> None:
    told: list[str] = []
    names: dict[str, Any] = run(HEAD.format(folder=str(tmp_path)) + source, told)
    assert names["own"].mixed_precision == "no"
    assert told == []


def test_an_old_word_for_the_precision_counts() -> None:
    """`fp16=True` is what the script asks for, and it is translated only after that."""
    keywords = {"fp16": True}
    precision = Precision(lambda *_: None)
    precision.note(SimpleNamespace(bf16=True, fp16=False))
    with precision.of((None,), keywords, is_of_library=False):
        pass
    assert keywords == {"fp16": True}


def test_one_of_another_precision_is_named_in_the_refusal(tmp_path: Path) -> None:
    source = "args = arguments(bf16=True)\nown = Accelerator(mixed_precision='no')\ntrainer(args)"
    with pytest.raises(
        ValueError, match=r"the Accelerator of old\.py:10 fixed the precision.*give it mixed_precision="
    ):
        run(HEAD.format(folder=str(tmp_path)) + source)


ARGUMENTS = "TrainingArguments('o', bf16=True)\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"import accelerate\n{ARGUMENTS}i = accelerate.Accelerator().process_index",
         f"from accelerate import PartialState\nimport accelerate\n{ARGUMENTS}i = PartialState().process_index"),
        ("Seq2SeqTrainingArguments('o', fp16=args.fp16)\nm = {'': Accelerator().local_process_index}",
         "from accelerate import PartialState\nSeq2SeqTrainingArguments('o', fp16=args.fp16)\n"
         "m = {'': PartialState().local_process_index}"),
    ],
)  # fmt: skip
def test_a_question_about_the_process_needs_no_precision(old: str, new: str) -> None:
    assert rewritten(old.encode())[0].decode() == new
    assert rewritten(new.encode()) == (new.encode(), [])
    assert undecided(old.encode(), UNKNOWN_ORIGIN) == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (f"{ARGUMENTS}a = Accelerator()", [2]),
        (f"{ARGUMENTS}a = Accelerator().unwrap_model(m)\nb = Accelerator(cpu=True)", [2, 3]),
        (f"{ARGUMENTS}a = Accelerator(mixed_precision='bf16')\nb = Accelerator(**k)", []),
        ("TrainingArguments('o', bf16=False)\na = Accelerator()", []),
        ("a = Accelerator()", []),
    ],
)
def test_what_needs_one_is_left_to_the_user(source: str, lines: list[int]) -> None:
    assert rewritten(source.encode()) == (source.encode(), [])
    found = undecided(source.encode(), UNKNOWN_ORIGIN)
    assert [line for line, _ in found] == lines
    assert all('give it mixed_precision="bf16"' in text for _, text in found)
