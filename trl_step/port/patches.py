"""Translates the calls of a running old script: `translated(report)` wraps the functions of `wrapped_functions`.

A wrapper looks for keywords of `rules.CALLS`. A call without any of them is passed through unchanged, so calls inside
today's libraries are not affected. All patches are removed when the script ends.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any

from transformers import PreTrainedTokenizerBase, Trainer

from trl_step.import_utils import is_peft_available
from trl_step.models.notices import users_frame
from trl_step.port.aliases import OLD
from trl_step.port.asking import is_asked_by_library
from trl_step.port.old.absent import absent_classes
from trl_step.port.old.arrays import old_arrays
from trl_step.port.old.attributes import old_attributes
from trl_step.port.old.chats import old_chats
from trl_step.port.old.columns import old_columns
from trl_step.port.old.evaluation import evaluation_without_rows
from trl_step.port.old.flags import old_flags
from trl_step.port.old.names import old_names
from trl_step.port.old.precision import Precision
from trl_step.port.old.reads import keep_given, old_reads
from trl_step.port.old.schedulers import old_schedulers
from trl_step.port.releases import ASKED, UNKNOWN_ORIGIN, Origin
from trl_step.port.rules import CALLS, NEW_PARAMETERS, TEXT_CLASSIFICATION, NewParameter
from trl_step.port.train_api import EXPERIMENTAL, MODULES, NAMES, PACKAGES
from trl_step.port.versions import version_of_trl
from trl_step.replacing import replaced
from trl_step.trainer.ppo_config import PPOConfig

Report = Callable[[str], None]


def wrapped_functions() -> Iterator[tuple[Any, str, str]]:
    """Every patch of a call: the owner, the name of its function, and the kind of call in `CALLS`."""
    import accelerate
    import datasets
    import transformers
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from trl_step.extras.all_scores import AllScoresPipeline
    from trl_step.models import PreTrainedModelWrapper

    yield transformers, "pipeline", "pipeline"
    yield transformers.pipelines, "pipeline", "pipeline"
    yield AllScoresPipeline, "__call__", "pipe"
    for auto_class in _BaseAutoModelClass.__subclasses__():
        if "from_pretrained" in vars(auto_class):
            yield auto_class, "from_pretrained", "from_pretrained"
    for owner in (transformers.PreTrainedModel, transformers.AutoTokenizer, PreTrainedTokenizerBase,
                  transformers.AutoConfig, transformers.PreTrainedConfig):  # fmt: skip
        yield owner, "from_pretrained", "from_pretrained"
    yield PreTrainedModelWrapper, "from_pretrained", "value_head.from_pretrained"
    yield transformers.GenerationMixin, "generate", "generate"
    yield transformers.GenerationConfig, "__init__", "generate"
    yield datasets, "load_dataset", "load_dataset"
    yield transformers.TrainingArguments, "__init__", "TrainingArguments"
    yield transformers.Seq2SeqTrainingArguments, "__init__", "TrainingArguments"
    yield transformers.Trainer, "__init__", "Trainer"
    yield transformers.Seq2SeqTrainer, "__init__", "Trainer"
    yield accelerate.Accelerator, "__init__", "Accelerator"
    yield PreTrainedTokenizerBase, "__call__", "tokenizer"
    yield PreTrainedTokenizerBase, "encode", "tokenizer"
    for owner in (transformers.utils.PushToHubMixin, transformers.PreTrainedModel, PreTrainedTokenizerBase,
                  transformers.PreTrainedConfig, transformers.ProcessorMixin, PreTrainedModelWrapper):  # fmt: skip
        yield owner, "push_to_hub", "push_to_hub"
    if is_peft_available():
        import peft

        yield peft.LoraConfig, "__init__", "LoraConfig"
        yield peft, "prepare_model_for_kbit_training", "prepare_model_for_kbit_training"


@contextmanager
def translated(report: Report, origin: Origin = UNKNOWN_ORIGIN, means_train: bool = False) -> Iterator[None]:
    """Inside, old keywords and names work; `report` is called once for each translation, with a line of text.

    `PPOConfig` has the defaults of `origin`. If they are not known, the first object that depends on them is reported.
    With `means_train`, `PPOConfig` and `PPOTrainer` are those of `trl_step.experimental.ppo`.
    """
    translator = Translator(report)
    with ExitStack() as stack:
        for owner, name, kind in wrapped_functions():
            original = owner.__dict__[name] if isinstance(owner, type) else getattr(owner, name)
            shown = owner.__name__ if name.startswith("__") else name
            stack.enter_context(replaced(owner, name, translator.wrap(original, shown, kind)))
        stack.enter_context(old_names(translator.report_once))
        stack.enter_context(absent_classes(translator.report_once))
        stack.enter_context(old_attributes(translator.report_once))
        stack.enter_context(old_arrays(translator.report_once))
        stack.enter_context(old_chats(translator.report_once))
        stack.enter_context(old_flags(translator.report_once, translator.translate))
        stack.enter_context(replaced(PPOConfig, "__init__", translator.with_defaults(PPOConfig.__init__, origin)))
        stack.enter_context(replaced(PPOConfig, "__dataclass_fields__", _fields_with(origin.defaults or {})))
        stack.enter_context(old_columns(translator.report_once))
        stack.enter_context(old_schedulers(translator.report_once))
        stack.enter_context(old_reads(translator.report_once))
        stack.enter_context(version_of_trl(translator.report_once, origin))
        if means_train:
            stack.enter_context(with_train(translator))
        # a function, since Python 3.10 gives a bound method in a class method no class
        adapt = classmethod(lambda trainer_class: translator.adapt_overrides(trainer_class))
        stack.enter_context(replaced(Trainer, "__init_subclass__", adapt))
        yield


@contextmanager
def with_train(translator: Translator) -> Iterator[None]:
    """Inside, the names of `train_api` are PPO with `train()`, under the arguments of each of its releases."""
    experimental = importlib.import_module(EXPERIMENTAL)
    trainer = experimental.PPOTrainer
    init = translator.wrap(trainer.__init__, trainer.__name__, "experimental.PPOTrainer")
    with ExitStack() as stack:
        stack.enter_context(replaced(trainer, "__init__", init))
        for package in PACKAGES:
            for name in NAMES:
                stack.enter_context(replaced(importlib.import_module(package), name, getattr(experimental, name)))
        for module in MODULES:  # found as they are: the package's own modules keep their names
            old = f"{OLD}.trainer.{module}"
            sys.modules[old] = importlib.import_module(f"{EXPERIMENTAL}.{module}")
            stack.callback(sys.modules.pop, old, None)
        yield


class Translator:
    """Wraps functions and reports what it translates: each set of keywords once for each kind of call.

    Args:
        report: gets one line of text.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.precision = Precision(self.report_once)
        self.reported: set[tuple[str, str]] = set()

    def wrap(self, function: Any, name: str, kind: str) -> Any:
        """A function, or a class method, that accepts the old keywords of this `kind` of call."""
        if isinstance(function, classmethod):
            return classmethod(self.wrap(function.__func__, name, kind))

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            if kind == "pipeline":
                _take_all_scores(args, keywords)
            if kind == "Accelerator":
                with self.precision.of(args, keywords, is_asked_by_library()):
                    return function(*args, **self.translate(kind, keywords, name))
            if kind == "Trainer":
                with evaluation_without_rows(function, args, keywords, self.report_once):
                    return function(*args, **self.translate(kind, keywords, name))
            found = function(*args, **self.translate(kind, keywords, name))
            if kind == "TrainingArguments":
                keep_given(args[0], keywords)
                self.precision.note(args[0])
            return found

        return call

    def translate(self, kind: str, keywords: dict[str, Any], name: str) -> dict[str, Any]:
        """`keywords` of a call for today's packages; the same dictionary if nothing has to change."""
        for rule in CALLS[kind]:
            given = {old: keywords[old] for old in rule.old if old in keywords}
            values = rule.values(given) if given else None
            if values is None:
                continue
            if any(new in keywords and new not in given for new in values):
                values = {}
            keywords = {key: value for key, value in keywords.items() if key not in given} | values
            self.report_once(f"{name}({_shown(given)})", f"{_shown(values) or 'left out'} ({rule.why})")
        if isinstance(keywords.get("model_kwargs"), dict):
            loading = self.translate("from_pretrained", keywords["model_kwargs"], "model_kwargs")
            keywords = {**keywords, "model_kwargs": loading}
        return keywords

    def with_defaults(self, make: Callable[..., None], origin: Origin) -> Callable[..., None]:
        """`PPOConfig.__init__` with the defaults of the script's release."""
        order = [field.name for field in fields(PPOConfig)]

        @functools.wraps(make)
        def init(config: Any, *args: Any, **keywords: Any) -> None:
            given = {**dict(zip(order, args, strict=False)), **keywords}
            old = origin.defaults
            if old is None and (asked := [name for name in ASKED if name not in given]):
                self.report_once(f"PPOConfig without {', '.join(asked)}", f"the defaults of 0.7.11; {origin.question}")
            elif old and (used := {name: value for name, value in old.items() if given.get(name, value) == value}):
                self.report_once("PPOConfig", f"{_shown(used)} (defaults of {origin})")
            make(config, *args, **{name: value for name, value in (old or {}).items() if name not in given}, **keywords)

        return init

    def adapt_overrides(self, trainer_class: type[Trainer]) -> None:
        """Wrap old methods of a new subclass of Trainer, so that they do not get arguments that they do not accept."""
        for name, parameter in NEW_PARAMETERS.items():
            method = vars(trainer_class).get(name)
            if method is not None and not takes(method, parameter):
                setattr(trainer_class, name, _without(method, parameter))
                told = f"does not get {parameter.name}: it does not take it"
                self.report_once(f"{trainer_class.__name__}.{name}", told)

    def report_once(self, old: str, new: str) -> None:
        """One line, with the place in the script."""
        if (old, new) in self.reported:
            return
        self.reported.add((old, new))
        frame = users_frame()
        self.report(f"{frame.f_code.co_filename}:{frame.f_lineno}: {old} -> {new}")


def _fields_with(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `PPOConfig` with other defaults, for subclasses and for parsers of the command line."""
    new = {field.name: copy.copy(field) for field in fields(PPOConfig)}
    for name, default in defaults.items():
        new[name].default = default
    return new


def takes(method: Callable[..., Any], parameter: NewParameter) -> bool:
    """Whether `method` can be given this argument."""
    parameters = inspect.signature(method).parameters
    kinds = [each.kind for each in parameters.values()]
    if parameter.position is None:
        return parameter.name in parameters or inspect.Parameter.VAR_KEYWORD in kinds
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Parameter.VAR_POSITIONAL in kinds or sum(map(by_position.__contains__, kinds)) > parameter.position


def _without(method: Callable[..., Any], parameter: NewParameter) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **keywords: Any) -> Any:
        keywords.pop(parameter.name, None)
        return method(*args[: parameter.position], **keywords)

    return call


def _shown(keywords: Mapping[str, Any]) -> str:
    """Numbers, booleans and None; for anything else the type, as the value may be long or secret."""
    plain = (bool, int, float, type(None))
    return ", ".join(
        f"{name}={value!r}" if isinstance(value, plain) else f"{name}=<{type(value).__name__}>"
        for name, value in keywords.items()
    )


def _take_all_scores(args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Text classification gets the class that supports `return_all_scores`, which is only passed in later calls."""
    from trl_step.extras.all_scores import AllScoresPipeline

    task = args[0] if args else keywords.get("task")
    if task in TEXT_CLASSIFICATION and keywords.get("pipeline_class") is None:
        keywords["pipeline_class"] = AllScoresPipeline
