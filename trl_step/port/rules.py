"""What changed between the packages of TRL 0.7's time (transformers 4, datasets 2, PEFT 0.8) and today's.

One table, `CALLS`: for each kind of call, the removed keywords and their replacements. Every rule has two forms:
`values` for a running call (`patches.py`), `sources` for the text of a script (`rewrite.py`); the tests compare them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from trl_step.trainer.text.old_arguments import RENAMED, WHAT_TO_DO, WITHOUT_EFFECT

UNKNOWN: Any = object()
"""The value of an expression that is not a literal."""


TEXT_CLASSIFICATION = ("sentiment-analysis", "text-classification")
"""The two names of the task whose pipeline took `return_all_scores`."""


class Source(NamedTuple):
    """The expression that a keyword is given in a script.

    Attributes:
        text: as written; in parentheses if an operator after it could bind more tightly.
        value: its value, or UNKNOWN.
    """

    text: str
    value: Any = UNKNOWN


class Rule(Protocol):
    """Keywords `old` of one call and the replacements of those `given`; None if they stay unchanged.

    If a call has both the new keyword and the old one, the new one is kept and the old one left out. `imports` is the
    statement that the new source needs. On the command line of a script `flag` is the old flag, and `new_flag` the one
    that takes its value; "" if there is none.
    """

    @property
    def old(self) -> tuple[str, ...]: ...

    @property
    def why(self) -> str: ...

    @property
    def imports(self) -> str: ...

    @property
    def flag(self) -> str: ...

    @property
    def new_flag(self) -> str: ...

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None: ...

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None: ...


class NoFlag:
    """Base of the rules: no statement is needed, no flag stands on a command line."""

    @property
    def imports(self) -> str:
        return ""

    @property
    def flag(self) -> str:
        return ""

    @property
    def new_flag(self) -> str:
        return ""


@dataclass(frozen=True)
class OneKeyword(NoFlag):
    """Base of the rules about the keyword `name`."""

    name: str

    @property
    def old(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def flag(self) -> str:
        return self.name


@dataclass(frozen=True)
class Rename(OneKeyword):
    """Another name for the same value."""

    new: str
    why: str = "it was renamed"

    @property
    def new_flag(self) -> str:
        return self.new

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {self.new: given[self.name]}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        return {self.new: given[self.name].text}


@dataclass(frozen=True)
class Warmup(NoFlag):
    """`warmup_ratio`, which counted if there were no `warmup_steps`, or 0 of them."""

    old: tuple[str, ...] = ("warmup_ratio", "warmup_steps")
    why: str = "a number of steps below 1 is a fraction of all"
    flag: str = "warmup_ratio"
    new_flag: str = "warmup_steps"

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        if "warmup_ratio" not in given:
            return None
        return {"warmup_steps": given.get("warmup_steps") or given["warmup_ratio"]}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None:
        if "warmup_ratio" not in given:
            return None
        steps, ratio = given.get("warmup_steps"), given["warmup_ratio"].text
        if steps is None or (steps.value is not UNKNOWN and not steps.value):
            return {"warmup_steps": ratio}
        return {"warmup_steps": f"{steps.text} or {ratio}" if steps.value is UNKNOWN else steps.text}


@dataclass(frozen=True)
class Drop(OneKeyword):
    """A keyword without a replacement."""

    why: str

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        return {}


@dataclass(frozen=True)
class Unset(OneKeyword):
    """A switch without a replacement, which is left out where it is off."""

    why: str

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        return None if given[self.name] else {}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None:
        return None if given[self.name].value is UNKNOWN or given[self.name].value else {}


@dataclass(frozen=True, eq=False)
class Values(OneKeyword):
    """Other values under the same name."""

    new: Mapping[str, str]
    why: str

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        value = given[self.name]
        return {self.name: self.new[value]} if isinstance(value, str) and value in self.new else None

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None:
        new = None if given[self.name].value is UNKNOWN else self.values({self.name: given[self.name].value})
        return new and {name: as_source(value) for name, value in new.items()}


@dataclass(frozen=True)
class WholeNumber(OneKeyword):
    """A number of tokens: an int, and not below `least`."""

    why: str
    least: int = 0

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        value = given[self.name]
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or (isinstance(value, int) and value >= self.least):
            return None
        return {self.name: max(int(value), self.least)}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None:
        new = None if given[self.name].value is UNKNOWN else self.values({self.name: given[self.name].value})
        return new and {name: as_source(value) for name, value in new.items()}


@dataclass(frozen=True, eq=False)
class Flag(OneKeyword):
    """A boolean that other keywords replace; with an empty `off`, false is left out."""

    on: Mapping[str, Any]
    off: Mapping[str, Any]
    why: str
    default: Mapping[str, Any] = field(default_factory=dict)
    """The values in a conditional expression if `off` is empty."""

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return dict(self.on if given[self.name] else self.off)

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        text, value = given[self.name]
        if value is not UNKNOWN:
            return {name: as_source(new) for name, new in self.values({self.name: value}).items()}
        off = {**self.default, **self.off}
        return {name: f"{as_source(new)} if {text} else {as_source(off[name])}" for name, new in self.on.items()}


@dataclass(frozen=True)
class Group(NoFlag):
    """Keywords that became entries of one dictionary."""

    old: tuple[str, ...]
    new: str
    why: str

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        return {self.new: dict(given)}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        entries = ", ".join(f'"{name}": {source.text}' for name, source in given.items())
        return {self.new: f"{{{entries}}}"}


@dataclass(frozen=True)
class LoaderSettings(NoFlag):
    """Settings of data loaders that became fields of a `DataLoaderConfiguration`."""

    old: tuple[str, ...] = ("dispatch_batches", "even_batches", "use_seedable_sampler")
    why: str = "accelerate's settings of data loaders are in one object"
    imports: str = "from accelerate import DataLoaderConfiguration"

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        from accelerate import DataLoaderConfiguration

        return {"dataloader_config": DataLoaderConfiguration(**given)}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        options = ", ".join(f"{name}={source.text}" for name, source in given.items())
        return {"dataloader_config": f"DataLoaderConfiguration({options})"}


@dataclass(frozen=True)
class Quantization(NoFlag):
    """`load_in_8bit`, `load_in_4bit` became a `quantization_config`."""

    old: tuple[str, ...] = ("load_in_8bit", "load_in_4bit")
    why: str = "transformers 5 takes a quantization_config"
    imports: str = "from transformers import BitsAndBytesConfig"

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        on = {name: True for name, value in given.items() if value}
        return {"quantization_config": BitsAndBytesConfig(**on)} if on else {}

    def sources(self, given: Mapping[str, Source]) -> dict[str, str]:
        maybe = {name: source for name, source in given.items() if source.value is UNKNOWN or source.value}
        if not maybe:
            return {}
        sure = any(source.value is not UNKNOWN for source in maybe.values())
        options = ", ".join(f"{name}={'True' if len(maybe) == 1 else source.text}" for name, source in maybe.items())
        condition = "" if sure else f" if {' or '.join(source.text for source in maybe.values())} else None"
        return {"quantization_config": f"BitsAndBytesConfig({options}){condition}"}


@dataclass(frozen=True)
class DeviceMap(NoFlag):
    """`device_map={"": 0}` or "cuda" names a GPU; without one the old packages continued, today's raise."""

    old: tuple[str, ...] = ("device_map",)
    why: str = "a machine without a GPU has only its CPU"
    imports: str = "import torch"

    def values(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        import torch

        on_gpu = self.names_gpu(given["device_map"])
        return {"device_map": None} if on_gpu and not torch.accelerator.is_available() else None

    def sources(self, given: Mapping[str, Source]) -> dict[str, str] | None:
        text, value = given["device_map"]
        names_one_place = re.search(r"""\{\s*(""|'')\s*:""", text)
        on_gpu = self.names_gpu(value) if isinstance(value, (str, int)) else names_one_place and value != {"": "cpu"}
        if not on_gpu or "accelerator.is_available" in text:
            return None
        return {"device_map": f"{text} if torch.accelerator.is_available() else None"}

    @staticmethod
    def names_gpu(places: Any) -> bool:
        """Whether `places` names a device that is no CPU."""
        named = places.values() if isinstance(places, dict) else [] if places is None else [places]
        return not NO_GPU.issuperset(map(str, named))


NO_GPU = frozenset(("cpu", "disk", "meta", "auto", "balanced", "balanced_low_0", "sequential"))
"""Places that are no accelerator, and words with which accelerate chooses."""


def as_source(value: Any) -> str:
    """A literal, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


OPTIMIZERS = {"adamw_hf": "adamw_torch", "adamw_apex_fused": "adamw_torch_fused"}
"""Old values of `optim`, and the same optimizer today."""
TOKEN = Rename("use_auth_token", "token")
LOADING: tuple[Rule, ...] = (
    TOKEN,
    DeviceMap(),
    Drop("resume_download", "downloads always resume"),
    Flag("use_flash_attention_2", {"attn_implementation": "flash_attention_2"}, {}, "attention is chosen by its name",
         default={"attn_implementation": None}),
)  # fmt: skip
ALL_SCORES = Flag(
    "return_all_scores",
    {"top_k": None, "sort_scores": False},
    {},
    "transformers 5 ignores it; top_k=None sorts by score, except with sort_scores=False of AllScoresPipeline",
    default={"top_k": "", "sort_scores": True},
)
TRAINING: tuple[Rule, ...] = (
    *(Rename(old, new) for old, new in RENAMED.items()),
    Warmup(),
    Flag("adafactor", {"optim": "adafactor"}, {}, "the optimizer is chosen by its name", {"optim": "adamw_torch"}),
    Flag("group_by_length", {"train_sampling_strategy": "group_by_length"}, {}, "sampling is chosen by its name",
         {"train_sampling_strategy": "random"}),
    Flag("include_inputs_for_metrics", {"include_for_metrics": ["inputs"]}, {}, "several inputs can be chosen",
         {"include_for_metrics": []}),
    Values("optim", OPTIMIZERS, "transformers 5 has torch's own"),
    Group(("dispatch_batches", "split_batches"), "accelerator_config", "accelerate's settings are in one dictionary"),
    *(Drop(name, WHAT_TO_DO.get(name, "transformers 5 has no such setting")) for name in WITHOUT_EFFECT),
)  # fmt: skip
TOKENIZING: tuple[Rule, ...] = (
    Flag("pad_to_max_length", {"padding": "max_length"}, {}, "transformers 5 ignores it", {"padding": False}),
    Rename("is_pretokenized", "is_split_into_words", "transformers 5 ignores it"),
    Rename("truncation_strategy", "truncation"),
)
SAMPLING: tuple[Rule, ...] = (
    WholeNumber("top_k", "a number of tokens is an int; 0 switches it off"),
    WholeNumber("min_length", "a number of tokens; 0 means no minimum, as -1 did"),
)

CALLS: Mapping[str, tuple[Rule, ...]] = {
    "pipeline": (*LOADING, ALL_SCORES, Drop("framework", "torch is the only framework")),
    "pipe": (ALL_SCORES, *TOKENIZING),
    "tokenizer": TOKENIZING,
    "from_pretrained": (*LOADING, Quantization()),
    "value_head.from_pretrained": LOADING,  # it takes load_in_8bit itself
    "generate": SAMPLING,
    "load_dataset": (
        TOKEN,
        Drop("trust_remote_code", "datasets 4 runs no dataset code"),
        Flag("ignore_verifications", {"verification_mode": "no_checks"}, {}, "checks are chosen by their name",
             default={"verification_mode": "basic_checks"}),
        Drop("task", "datasets 4 has no task templates"),
    ),
    "TrainingArguments": TRAINING,
    "OnPolicyConfig": (
        *TRAINING,
        Drop("base_model", "the script loads the models, as it did"),
        Drop("num_updates", "the trainer computes it"),
        Unset("non_eos_penalty", "where it is off; where it is on, see missing_eos_penalty"),
    ),
    "experimental.PPOTrainer": (
        Rename("tokenizer", "processing_class", "TRL 0.12 renamed it"),
        Rename("config", "args", "TRL 0.13 renamed it"),
        Rename("policy", "model", "TRL 0.13 renamed it"),
        Rename("ref_policy", "ref_model", "TRL 0.13 renamed it"),
    ),
    "Trainer": (Rename("tokenizer", "processing_class"),),
    "Accelerator": (
        Rename("logging_dir", "project_dir"),
        Flag("fp16", {"mixed_precision": "fp16"}, {}, "precision is chosen by its name", {"mixed_precision": None}),
        LoaderSettings(),
    ),
    "prepare_model_for_kbit_training": (
        Drop("output_embedding_layer_name", "the whole of the model that is not quantized becomes float32"),
        Drop("layer_norm_names", "the whole of the model that is not quantized becomes float32"),
    ),
    "push_to_hub": (
        TOKEN,
        Rename("repo_path_or_name", "repo_id"),
        Drop("use_temp_dir", "transformers 5 always uploads from a temporary folder"),
        Drop("safe_serialization", "files are always safetensors"),
    ),
    "LoraConfig": (
        Drop("merge_weights", "merge_and_unload() merges adapters"),
        Drop("enable_lora", "target_modules chooses"),
    ),
}  # fmt: skip


class NewParameter(NamedTuple):
    """An argument that `Trainer` passes to one of its methods since transformers 4.46.

    Attributes:
        name: of the argument.
        position: counted from `self`, which is 0; None if it is passed by its name.
    """

    name: str
    position: int | None = None


NEW_PARAMETERS: Mapping[str, NewParameter] = {
    "compute_loss": NewParameter("num_items_in_batch"),
    "training_step": NewParameter("num_items_in_batch", 3),
    "log": NewParameter("start_time", 2),
}
"""Methods that subclasses of Trainer override, and the argument that they now get in addition."""
