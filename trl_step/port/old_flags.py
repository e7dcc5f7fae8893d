"""Old settings of `TrainingArguments` on the command line of a script: `--evaluation_strategy steps`."""

from __future__ import annotations

import functools
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from trl_step.port.rules import CALLS, Drop, Rename

Tell = Callable[[str, str], None]


def translated_words(words: Sequence[str], known: set[str], tell: Tell) -> list[str]:
    """`words` of a command line whose parser knows the flags `known`.

    A flag that it does not know and whose new name it knows is renamed; one that today's packages have no use for is
    left out with its value, where the parser is one of training arguments.
    """
    rules = {f"--{rule.old[0]}": rule for rule in CALLS["TrainingArguments"] if isinstance(rule, (Rename, Drop))}
    new_words: list[str] = []
    value_follows = False  # of a flag that was left out
    for word in words:
        if value_follows and not word.startswith("--"):
            value_follows = False
            continue
        flag, equals, value = word.partition("=")
        rule = rules.get(flag) if flag not in known else None
        value_follows = isinstance(rule, Drop) and "--eval_strategy" in known and not equals
        if isinstance(rule, Rename) and f"--{rule.new}" in known:
            new_words.append(f"--{rule.new}{equals}{value}")
            tell(flag, f"--{rule.new} ({rule.why})")
        elif isinstance(rule, Drop) and "--eval_strategy" in known:
            tell(flag, f"left out ({rule.why})")
        else:
            new_words.append(word)
    return new_words


def with_old_flags(parse_known_args: Callable[..., Any], tell: Tell) -> Callable[..., Any]:
    """`HfArgumentParser.parse_known_args` that takes the old flags as well."""

    @functools.wraps(parse_known_args)
    def parse(parser: Any, args: Sequence[str] | None = None, namespace: Namespace | None = None) -> Any:
        words = sys.argv[1:] if args is None else args
        return parse_known_args(parser, translated_words(words, set(parser._option_string_actions), tell), namespace)

    return parse
