"""Old settings of `TrainingArguments` on a script's command line, `--evaluation_strategy steps`, in YAML and JSON."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import field, fields, make_dataclass
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from trl_step.commands.cli_utils import TrlParser
from trl_step.port.old.reads import keep_given
from trl_step.port.rules import CALLS, Values
from trl_step.replacing import replaced
from trl_step.trainer.text.training_arguments import TrainingArguments as OurArguments

Report = Callable[[str, str], None]
Translate = Callable[[str, dict[str, Any], str], dict[str, Any]]
NARROWED = "_narrowed_from"
"""Where a class made by `_without_clashes` keeps the one that it stands for."""
NO = ("false", "no", "f", "n", "0")
"""Words that mean false on the command line; a flag alone means true."""


def translated_words(
    words: Sequence[str], known: set[str], report: Report, left_out: dict[str, Any] | None = None
) -> list[str]:
    """`words` of a command line, translated for a parser that knows the flags `known`.

    An unknown flag is renamed if the parser knows its new name. If the parser is for training arguments, a switch that
    another flag replaces becomes that flag, and a flag that today's packages no longer have is left out with its
    value, which `left_out` gets.
    """
    rules = {f"--{rule.flag}": rule for rule in CALLS["TrainingArguments"] if rule.flag}
    are_of_training = "--eval_strategy" in known
    new_words: list[str] = []
    waiting = _without_zero_steps(words)[::-1]
    if are_of_training:
        waiting = _with_new_values(waiting[::-1], report)[::-1]
    while waiting:
        word = waiting.pop()
        flag, equals, value = word.partition("=")
        rule = rules.get(flag) if flag not in known else None
        if rule is not None and f"--{rule.new_flag}" in known:
            new_words.append(f"--{rule.new_flag}{equals}{value}")
            report(flag, f"--{rule.new_flag} ({rule.why})")
        elif rule is not None and not rule.new_flag and are_of_training:
            if not equals and waiting and not waiting[-1].startswith("--"):
                value = waiting.pop()
            chosen = rule.values({rule.flag: value.lower() not in NO}) or {}
            given = [
                text
                for name, new in chosen.items()
                for text in (f"--{name}", *([new] if isinstance(new, str) else new))
            ]
            new_words += given
            if left_out is not None and not given:
                left_out[rule.flag] = value or True
            report(flag, f"{' '.join(given) or 'left out'} ({rule.why})")
        else:
            new_words.append(word)
    return new_words


def _without_zero_steps(words: Sequence[str]) -> list[str]:
    """`words` without `--warmup_steps 0` beside `--warmup_ratio`, which counted then."""
    words = list(words)
    if not any(word.partition("=")[0] == "--warmup_ratio" for word in words):
        return words
    if "--warmup_steps=0" in words:
        words.remove("--warmup_steps=0")
    for i in range(len(words) - 1):
        if words[i : i + 2] == ["--warmup_steps", "0"]:
            return words[:i] + words[i + 2 :]
    return words


def _with_new_values(words: Sequence[str], report: Report) -> list[str]:
    """`words` with today's names of values, such as optimizers."""
    words = list(words)
    for rule in (rule for rule in CALLS["TrainingArguments"] if isinstance(rule, Values)):
        flag = f"--{rule.name}"
        for i, word in enumerate(words):
            old = word.removeprefix(f"{flag}=") if word.startswith(f"{flag}=") else word
            if old in rule.new and (old != word or words[max(i - 1, 0)] == flag):
                words[i] = word.removesuffix(old) + rule.new[old]
                report(f"{flag} {old}", f"{rule.new[old]} ({rule.why})")
    return words


@contextmanager
def old_flags(report: Report, translate: Translate) -> Iterator[None]:
    """Inside, `HfArgumentParser` takes old settings of `TrainingArguments`: as words, from YAML, JSON and dictionaries.

    Args:
        report: called with the old and the new words.
        translate: gives and reports the settings of today; called with the kind of call, settings and a name.
    """
    parse_words, parse_all = HfArgumentParser.parse_known_args, HfArgumentParser.parse_args_into_dataclasses
    parse_settings, read_file = HfArgumentParser.parse_dict, TrlParser._settings
    make = HfArgumentParser.__init__

    @functools.wraps(make)
    def init(parser: Any, dataclass_types: Any = None, **options: Any) -> None:
        kinds = list(dataclass_types) if isinstance(dataclass_types, Iterable) else dataclass_types
        make(parser, _without_clashes(kinds, report) if isinstance(kinds, list) else kinds, **options)

    @functools.wraps(parse_words)
    def parse_known_args(
        parser: Any, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        words = sys.argv[1:] if args is None else args
        parser.left_out = {}
        known = set(parser._option_string_actions)
        return parse_words(parser, translated_words(words, known, report, parser.left_out), namespace)

    @functools.wraps(parse_all)
    def parse_args_into_dataclasses(parser: Any, *args: Any, **options: Any) -> tuple[Any, ...]:
        found = parse_all(parser, *args, **options)
        return _which_answer(found, {**getattr(parser, "of_file", {}), **parser.left_out})

    @functools.wraps(parse_settings)
    def parse_dict(parser: Any, args: Mapping[str, Any], *more: Any, **options: Any) -> tuple[Any, ...]:
        new = _of_today(parser.dataclass_types, args, translate)
        return _which_answer(parse_settings(parser, new, *more, **options), args)

    def settings_of_file(parser: Any, words: list[str]) -> dict[str, Any]:
        parser.of_file = read_file(words)
        plain = [kind for kind in parser.dataclass_types if not issubclass(kind, OurArguments)]  # ours take old names
        return _of_today(plain, parser.of_file, translate)

    with ExitStack() as stack:
        stack.enter_context(replaced(HfArgumentParser, "__init__", init))
        for method in (parse_known_args, parse_args_into_dataclasses, parse_dict):
            stack.enter_context(replaced(HfArgumentParser, method.__name__, method))
        stack.enter_context(replaced(TrlParser, "_settings", settings_of_file))
        yield


def _of_today(kinds: Sequence[type], given: Mapping[str, Any], translate: Translate) -> dict[str, Any]:
    """Settings for objects of `kinds`, with those of training arguments translated."""
    if not any(issubclass(kind, TrainingArguments) for kind in kinds):
        return dict(given)
    own = {field.name for kind in kinds if not issubclass(kind, TrainingArguments) for field in fields(kind)}
    theirs = {name: value for name, value in given.items() if name not in own}
    kept = {name: value for name, value in given.items() if name in own}
    return {**kept, **translate("TrainingArguments", theirs, TrainingArguments.__name__)}


def _without_clashes(kinds: list[type], report: Report) -> list[type]:
    """`kinds` whose `TrainingArguments` are not asked about what another one has too, such as today's `use_cache`."""
    own = {each.name: kind for kind in kinds if not issubclass(kind, TrainingArguments) for each in fields(kind)}
    narrowed = []
    for kind in kinds:
        both = [each for each in fields(kind) if each.name in own] if issubclass(kind, TrainingArguments) else []
        if both:
            unasked = [(each.name, Any, field(default=each.default, init=False)) for each in both]
            for each in both:
                old = f"{each.name} of {own[each.name].__name__} and {kind.__name__}"
                report(old, f"that of {own[each.name].__name__} (transformers 4 had no other)")
            namespace = {NARROWED: kind}
            kind = make_dataclass(kind.__name__, unasked, bases=(kind,), init=False, namespace=namespace)
        narrowed.append(kind)
    return narrowed


def _which_answer(objects: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[Any, ...]:
    """`objects`, whose training arguments answer with what was given for settings that nothing stands for today."""
    for one in objects:
        if isinstance(one, TrainingArguments):
            one.__class__ = getattr(one, NARROWED, type(one))
            keep_given(one, given)
    return objects
