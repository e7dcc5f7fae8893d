"""Attributes and methods of tokenizers and trainers that a running script uses under their old names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_callback import CallbackHandler

from trl_step.port.asking import is_asked_by_library
from trl_step.port.moved import RENAMED_ATTRIBUTES, RENAMED_METHODS
from trl_step.port.stand_ins import build_inputs_with_special_tokens
from trl_step.replacing import replaced

Report = Callable[[str, str], None]


class OldAttribute:
    """An attribute that is another one, reported when a script uses it; libraries do not see it."""

    def __init__(self, owner: type, name: str, new: str, report: Report) -> None:
        self.owner, self.name, self.new, self.report = owner, name, new, report

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None or is_asked_by_library():
            raise AttributeError(f"{owner.__name__} has no attribute {self.name}")
        self.report(f"{self.owner.__name__}.{self.name}", self.new)
        return getattr(instance, self.new)


class OldSetting(OldAttribute):
    """An attribute that can be set as well."""

    def __set__(self, instance: Any, value: Any) -> None:
        self.report(f"{self.owner.__name__}.{self.name}", self.new)
        setattr(instance, self.new, value)


class OldMethod:
    """A method that a function stands for, reported when a script calls it."""

    def __init__(self, owner: type, name: str, function: Any, shown: str, report: Report) -> None:
        self.owner, self.name, self.function, self.shown, self.report = owner, name, function, shown, report

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self.function

        @functools.wraps(self.function)
        def call(*args: Any, **keywords: Any) -> Any:
            self.report(f"{self.owner.__name__}.{self.name}", self.shown)
            return self.function(instance, *args, **keywords)

        return call


@contextmanager
def old_attributes(report: Report) -> Iterator[None]:
    """Inside, tokenizers and trainers have them; each is reported."""
    tokenizers = PreTrainedTokenizerBase
    with ExitStack() as stack:
        for name, new in RENAMED_METHODS.items():
            method = OldMethod(tokenizers, name, getattr(tokenizers, new), "call the tokenizer", report)
            stack.enter_context(replaced(tokenizers, name, method))
        name = build_inputs_with_special_tokens.__name__
        method = OldMethod(tokenizers, name, build_inputs_with_special_tokens, "the tokens of a call", report)
        stack.enter_context(replaced(tokenizers, name, method))
        for name, new in RENAMED_ATTRIBUTES.items():
            stack.enter_context(replaced(tokenizers, name, OldSetting(tokenizers, name, new, report)))
        attribute = OldAttribute(Trainer, "tokenizer", "processing_class", report)
        stack.enter_context(replaced(Trainer, "tokenizer", attribute))
        stack.enter_context(replaced(CallbackHandler, "call_event", _with_tokenizer(CallbackHandler.call_event)))
        yield


def _with_tokenizer(call_event: Callable[..., Any]) -> Callable[..., Any]:
    """`CallbackHandler.call_event` that also gives the tokenizer under its old name."""

    @functools.wraps(call_event)
    def call(handler: Any, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        return call_event(handler, event, args, state, control, **{"tokenizer": handler.processing_class, **kwargs})

    return call
