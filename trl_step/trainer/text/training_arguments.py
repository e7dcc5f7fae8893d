"""transformers' `TrainingArguments`, which also accepts the names of release 4."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from typing import Any, Optional

import transformers

from trl_step.models.notices import warn_user
from trl_step.trainer.text.old_arguments import RENAMED, WHAT_TO_DO, WITHOUT_EFFECT

TRANSLATED = {
    "adafactor": "optim",
    "group_by_length": "train_sampling_strategy",
    "include_inputs_for_metrics": "include_for_metrics",
    "split_batches": "accelerator_config",
    "dispatch_batches": "accelerator_config",
}
"""Old names whose values are others in transformers 5."""

DEFAULTS = {
    one.name: one.default_factory() if callable(one.default_factory) else one.default
    for one in fields(transformers.TrainingArguments)
    if one.init
}
"""Of transformers' arguments."""


def translate_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of transformers 4's `TrainingArguments` translated to release 5; each change warns once.

    Raises:
        TypeError: one setting is given under its old and its new name.
    """
    translated = {name: value for name, value in arguments.items() if value is not None or name not in OLD_NAMES}
    if DEFAULTS.keys() <= {*arguments, "output_dir"}:  # a command line gives all settings, most of them by default
        for old, new in (*RENAMED.items(), *TRANSLATED.items()):
            if translated.get(old) is not None and translated.get(new, DEFAULTS[new]) == DEFAULTS[new]:
                translated.pop(new, None)
    for old, new in RENAMED.items():
        if old in translated:
            _put(translated, new, translated.pop(old), old)
    if translated.pop("adafactor", False):
        _put(translated, "optim", "adafactor", "adafactor")
    if translated.pop("group_by_length", False):
        _put(translated, "train_sampling_strategy", "group_by_length", "group_by_length")
    if translated.pop("include_inputs_for_metrics", False):
        _put(translated, "include_for_metrics", ["inputs"], "include_inputs_for_metrics")
    ratio = translated.pop("warmup_ratio", None)
    if ratio and not translated.get("warmup_steps"):  # steps took precedence over the ratio
        translated.pop("warmup_steps", None)
        _put(translated, "warmup_steps", ratio, "warmup_ratio")
    of_accelerator = {
        name: value
        for name in ("split_batches", "dispatch_batches")
        if (value := translated.pop(name, None)) is not None
    }
    if of_accelerator:
        _put(translated, "accelerator_config", of_accelerator, " and ".join(of_accelerator))
    for name in WITHOUT_EFFECT:
        if translated.pop(name, None):
            advice = WHAT_TO_DO.get(name, "leave it out")
            warn_user(f"{name} has no effect with transformers 5: {advice}", FutureWarning)
    return translated


def _put(arguments: dict[str, Any], new: str, value: Any, old: str) -> None:
    if new in arguments:
        raise TypeError(f"{old} is the old name of {new}: give one of them")
    if value is None:
        return
    arguments[new] = value
    warn_user(f"{old} is called {new} since transformers 5; the old name works until trl_step 1.0", FutureWarning)


OLD_NAMES = (*RENAMED, "warmup_ratio", *TRANSLATED, *WITHOUT_EFFECT)
FLAGS = {
    "no_cuda", *TRANSLATED, "overwrite_output_dir", "save_safetensors", "use_mps_device", "jit_mode_eval", "use_ipex",
    "tpu_metrics_debug", "use_legacy_prediction_loop", "include_tokens_per_second",
}  # fmt: skip
NUMBERS = {"per_gpu_train_batch_size": int, "per_gpu_eval_batch_size": int, "warmup_ratio": float}


def _old_field(name: str) -> tuple[str, Any, Any]:
    """A field for an old name, so that `HfArgumentParser` takes it from a command line, from YAML and from JSON."""
    new = {**RENAMED, "warmup_ratio": "warmup_steps"}.get(name)
    metadata = {"help": f"Old name of {new}." if new else "Of transformers 4."}
    kind: Any = bool if name in FLAGS else Optional[NUMBERS.get(name, str)]
    return name, kind, field(default=None, repr=False, metadata=metadata)


_OldNames: Any = make_dataclass("_OldNames", [_old_field(name) for name in OLD_NAMES], init=False)


@dataclass(init=False)
class TrainingArguments(_OldNames, transformers.TrainingArguments):  # type: ignore[misc]
    """transformers' `TrainingArguments`, which also accepts old names: `evaluation_strategy`, `no_cuda`, and so on.

    Args:
        output_dir: folder of the checkpoints.
        arguments: the other arguments of `transformers.TrainingArguments`, of release 4 or 5.
    """

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        super().__init__(output_dir=output_dir, **translate_arguments(arguments))

    def __post_init__(self) -> None:
        """Translate old names that were set as attributes: the constructor of a dataclass that derives from this one
        does so."""
        given = {name: value for name in OLD_NAMES if (value := self.__dict__.pop(name, None)) is not None}
        if given:
            known = {name: getattr(self, name) for name in DEFAULTS}
            for name, value in translate_arguments({**known, **given}).items():
                setattr(self, name, value)
        super().__post_init__()

    def to_dict(self) -> dict[str, Any]:
        """transformers' dictionary of all settings, under their present names."""
        return {name: value for name, value in super().to_dict().items() if name not in OLD_NAMES}


def own_fields(kind: type) -> dict[str, Any]:
    """Name -> default of each field of a dataclass that `TrainingArguments` does not have."""
    known = {one.name for one in fields(TrainingArguments)}
    return {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(kind)
        if one.name not in known
    }
