"""Old settings that the text of a script reads from its training arguments."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from tests.port.rewriting import assert_rewritten
from tests.port.test_run import run
from trl_step.port.releases import UNKNOWN_ORIGIN
from trl_step.port.rewrite import rewritten, undecided
from trl_step.port.rewriting.reads import EXPRESSIONS

IMPORT = "from transformers import TrainingArguments\n"
MADE = "a = TrainingArguments('o')\n"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"{MADE}print(a.evaluation_strategy, a.no_cuda)", f"{MADE}print(a.eval_strategy, a.use_cpu)"),
        (f"{MADE}a.evaluation_strategy = 'no'", f"{MADE}a.eval_strategy = 'no'"),
        ("def f(a: TrainingArguments):\n    return not a.adafactor",
         'def f(a: TrainingArguments):\n    return not (a.optim == "adafactor")'),
        ("class R(Trainer):\n    def f(self):\n        return self.args.per_gpu_train_batch_size",
         "class R(Trainer):\n    def f(self):\n        return self.args.per_device_train_batch_size"),
        ("t = Trainer(m, x)\nt.args.group_by_length",
         't = Trainer(m, x)\n(t.args.train_sampling_strategy == "group_by_length")'),
        ("p = HfArgumentParser((Own, TrainingArguments))\no, a = p.parse_args_into_dataclasses()\n"
         "o.evaluation_strategy, a.evaluation_strategy",
         "p = HfArgumentParser((Own, TrainingArguments))\no, a = p.parse_args_into_dataclasses()\n"
         "o.evaluation_strategy, a.eval_strategy"),
        ("o, s.a = HfArgumentParser([Own, RewardConfig]).parse_yaml_file(x)\ns.a.warmup_ratio",
         "o, s.a = HfArgumentParser([Own, RewardConfig]).parse_yaml_file(x)\n"
         "(s.a.warmup_steps if s.a.warmup_steps < 1 else 0.0)"),
        ("class A(TrainingArguments):\n    x = 1\na = A('o')\na.no_cuda",
         "class A(TrainingArguments):\n    x = 1\na = A('o')\na.use_cpu"),
    ],
)  # fmt: skip
def test_change(old: str, new: str) -> None:
    assert_rewritten(old, new)
    assert undecided(old.encode(), UNKNOWN_ORIGIN) == []


@pytest.mark.parametrize(
    "source",
    [
        "a = parser.parse_args()\na.evaluation_strategy, a.warmup_ratio, a.logging_dir",
        "class A(TrainingArguments):\n    adafactor: bool = False\na = A('o')\na.adafactor",
        "class Own:\n    def f(self):\n        return self.args.no_cuda",
        f"{MADE}a.eval_strategy, b.no_cuda, a.other.no_cuda",
    ],
)
def test_left_alone(source: str) -> None:
    assert rewritten(source.encode()) == (source.encode(), [])
    assert undecided(source.encode(), UNKNOWN_ORIGIN) == []


def test_what_nothing_stands_for_is_reported() -> None:
    source = f"{MADE}print(a.logging_dir)\na.adafactor = True\na.past_index = 1".encode()
    assert rewritten(source) == (source, [])
    assert undecided(source, UNKNOWN_ORIGIN) == [
        (2, "a.logging_dir is read: transformers 5 has no such setting; set the environment variable "
         "TENSORBOARD_LOGGING_DIR"),
        (3, "a.adafactor is set: transformers 5 has no such setting; give it to TrainingArguments"),
        (4, "a.past_index is set: transformers 5 has no such setting"),
    ]  # fmt: skip


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"warmup_steps": 0.1, "optim": "adafactor"},
        {"train_sampling_strategy": "group_by_length", "include_for_metrics": ["inputs"]},
        {"accelerator_config": {"split_batches": True, "dispatch_batches": True}},
    ],
)
def test_an_expression_says_what_the_kit_answers(name: str, given: dict[str, object]) -> None:
    arguments = TrainingArguments("o", use_cpu=True, report_to=[], **given)  # type: ignore[arg-type]
    written = eval(EXPRESSIONS[name].format("arguments"), {"arguments": arguments})
    source = (
        f"from transformers import TrainingArguments\na = TrainingArguments('o', use_cpu=True, report_to=[], **{given})"
    )
    assert run(f"{source}\nread = a.{name}")["read"] == written


@pytest.mark.parametrize("name", ["no_cuda", "evaluation_strategy"])
def test_a_running_script_sets_the_setting_of_today(name: str) -> None:
    told: list[str] = []
    source = "from transformers import TrainingArguments\na = TrainingArguments('o', use_cpu=True, report_to=[])\n"
    names = run(
        f"{source}a.{name} = 'x'\nread = a.{name}, a.use_cpu, a.eval_strategy\na.past_index = 3\nback = a.past_index",
        told,
    )
    assert names["read"] == (("x", "x", "no") if name == "no_cuda" else ("x", True, "x"))
    assert names["back"] == 3
    assert sum(f".{name} is set" in line for line in told) == 1
    assert sum(".past_index is set -> no effect" in line for line in told) == 1
