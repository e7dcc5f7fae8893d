"""Old settings of `TrainingArguments` on the command line of a script: `--evaluation_strategy steps`."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from trl_step.port.rules import CALLS

Report = Callable[[str, str], None]
NO = ("false", "no", "f", "n", "0")
"""Words that mean false on the command line; a flag alone means true."""


def translated_words(words: Sequence[str], known: set[str], report: Report) -> list[str]:
    """`words` of a command line, translated for a parser that knows the flags `known`.

    An unknown flag is renamed if the parser knows its new name. If the parser is for training arguments, a switch that
    another flag replaces becomes that flag, and a flag that today's packages no longer have is left out with its
    value.
    """
    rules = {f"--{rule.flag}": rule for rule in CALLS["TrainingArguments"] if rule.flag}
    are_of_training = "--eval_strategy" in known
    new_words: list[str] = []
    waiting = _without_zero_steps(words)[::-1]
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


def with_old_flags(parse_known_args: Callable[..., Any], report: Report) -> Callable[..., Any]:
    """`HfArgumentParser.parse_known_args` that also accepts the old flags."""

    @functools.wraps(parse_known_args)
    def parse(parser: Any, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Any:
        words = sys.argv[1:] if args is None else args
        return parse_known_args(parser, translated_words(words, set(parser._option_string_actions), report), namespace)

    return parse
