"""Old names that a running script reads from its `TrainingArguments`: `args.group_by_length`, `args.no_cuda`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import transformers

from trl_step.port.asking import is_asked_by_library
from trl_step.port.rules import CALLS
from trl_step.replacing import replaced
from trl_step.trainer.text.training_arguments import OLD_NAMES, RENAMED, TrainingArguments

Report = Callable[[str, str], None]

FROM_OTHERS: Mapping[str, Callable[[Any], Any]] = {
    "warmup_ratio": lambda args: args.warmup_steps if 0 < args.warmup_steps < 1 else 0.0,
    "adafactor": lambda args: args.optim == "adafactor",
    "group_by_length": lambda args: args.train_sampling_strategy == "group_by_length",
    "include_inputs_for_metrics": lambda args: "inputs" in args.include_for_metrics,
    "split_batches": lambda args: args.accelerator_config.split_batches,
    "dispatch_batches": lambda args: args.accelerator_config.dispatch_batches,
}
"""Old settings that another one says today."""
DEFAULTS: Mapping[str, Any] = {
    "overwrite_output_dir": False,
    "save_safetensors": True,
    "use_mps_device": False,
    "jit_mode_eval": False,
    "use_ipex": False,
    "fp16_opt_level": "O1",
    "half_precision_backend": "auto",
    "fp16_backend": "auto",
    "tpu_metrics_debug": False,
    "past_index": -1,
    "fsdp_min_num_params": 0,
    "use_legacy_prediction_loop": False,
    "mp_parameters": "",
    "ray_scope": "last",
    "include_tokens_per_second": False,
}
"""Of settings that nothing stands for today, in transformers 4; None for the others."""


class OldRead:
    """An attribute that answers a script with what stands for it today, or with what the script gave.

    What a script sets goes to what stands for it, too. Libraries, which read every field of a dataclass, see the class
    as it is without the kit.
    """

    def __init__(self, owner: type, name: str, report: Report) -> None:
        self.name, self.report = name, report
        self.has_before, self.before = hasattr(owner, name), getattr(owner, name, None)

    def __get__(self, args: Any, owner: type) -> Any:
        if args is not None and self.name in vars(args):
            return vars(args)[self.name]
        if args is None or is_asked_by_library():
            if self.has_before:
                return self.before
            raise AttributeError(f"{owner.__name__} has no attribute {self.name!r}")
        if self.name in RENAMED:
            value, source = getattr(args, RENAMED[self.name]), f"the value of {RENAMED[self.name]}"
        elif self.name in FROM_OTHERS:
            value = FROM_OTHERS[self.name](args)
            source = f"{value!r}, from the settings of today"
        else:
            value = DEFAULTS.get(self.name)
            source = f"{value!r}, the default of transformers 4"
        self.report(f"{owner.__name__}.{self.name} is read", source)
        return value

    def __set__(self, args: Any, value: Any) -> None:
        if value is None:  # not given, as the constructor of a dataclass says
            vars(args).pop(self.name, None)
            return
        new: dict[str, Any] = {}
        if not is_asked_by_library():
            rules = (rule for rule in CALLS["TrainingArguments"] if rule.flag == self.name)
            whole = self.name == "warmup_ratio" and args.warmup_steps >= 1  # they count, and the ratio does not
            known = {"warmup_steps": args.warmup_steps} if whole else {}
            new = next((rule.values({**known, self.name: value}) or {} for rule in rules), {})
            told = ", ".join(new) or "no effect, transformers 5 has no such setting"
            self.report(f"{type(args).__name__}.{self.name} is set", told)
        for name, today in new.items():
            setattr(args, name, today)
        if not new:
            vars(args)[self.name] = value


@contextmanager
def old_reads(report: Report) -> Iterator[None]:
    """Inside, a script can ask `TrainingArguments` for old settings; each is reported."""
    with ExitStack() as stack:
        for owner in (transformers.TrainingArguments, TrainingArguments):
            for name in OLD_NAMES:
                stack.enter_context(replaced(owner, name, OldRead(owner, name, report)))
        for name in ("__init__", "__post_init__"):
            stack.enter_context(replaced(TrainingArguments, name, _keeping(getattr(TrainingArguments, name))))
        yield


def _keeping(make: Callable[..., None]) -> Callable[..., None]:
    """A constructor after which the object answers with what it was given, as a keyword or as an attribute."""

    @functools.wraps(make)
    def call(args: Any, *values: Any, **keywords: Any) -> None:
        given = {**{name: vars(args)[name] for name in OLD_NAMES if name in vars(args)}, **keywords}
        make(args, *values, **keywords)
        keep_given(args, {name: value for name, value in given.items() if value is not None})

    return call


def keep_given(args: Any, given: Mapping[str, Any]) -> None:
    """Let the object answer with what a script gave for settings that nothing stands for today."""
    for name in given.keys() & set(OLD_NAMES) - RENAMED.keys() - FROM_OTHERS.keys():
        vars(args)[name] = given[name]
