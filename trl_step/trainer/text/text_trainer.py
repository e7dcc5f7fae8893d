"""Shared parts of the text trainers: a model given by name, a tokenizer under two names, tags on the hub."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import transformers
from accelerate import PartialState

from trl_step.import_utils import is_unsloth_available
from trl_step.models.adapters import remove_paths_from_card
from trl_step.models.inner_model import is_peft_model
from trl_step.models.loading import load_pretrained
from trl_step.models.notices import leave_out_default_loss, warn_user


class TextTrainer(transformers.Trainer):
    """`transformers.Trainer` that also accepts its tokenizer as `tokenizer`, and tags its models on the hub.

    Args:
        tokenizer: becomes `processing_class`.
        prepare_model: from each model that `model_init` builds to the one that is trained, such as its PeftModel.
        arguments: the other arguments of `transformers.Trainer`.
    """

    _tag_names: ClassVar[list[str]] = ["trl"]
    _prepare_rows: Callable[[Any], Any] | None = None
    """From rows of texts to rows of tokens."""
    _prepare_model: Callable[[Any], Any] | None = None
    _token_column = "input_ids"
    """Rows that have it are tokenized already."""

    def __init__(self, tokenizer: Any, prepare_model: Callable[[Any], Any] | None = None, **arguments: Any) -> None:
        self._prepare_model = prepare_model
        leave_out_default_loss()
        super().__init__(processing_class=tokenizer, **arguments)
        if hasattr(self.model, "add_model_tags"):
            self.model.add_model_tags(self._tag_names)

    def call_model_init(self, trial: Any = None) -> Any:
        """The model that `model_init` builds, prepared like one that is given as `model`."""
        model = super().call_model_init(trial)
        return model if self._prepare_model is None else self._prepare_model(model)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As in `transformers.Trainer`; rows may have texts, like those that the trainer was built with.

        Args:
            eval_dataset: rows, or the name of one of the trainer's; None: the trainer's.
        """
        return super().get_eval_dataloader(self._with_tokens(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As in `transformers.Trainer`; rows may have texts.

        Args:
            test_dataset: the rows.
        """
        return super().get_test_dataloader(self._with_tokens(test_dataset))

    def _with_tokens(self, dataset: Any) -> Any:
        columns = getattr(dataset, "column_names", None)
        if self._prepare_rows is None or columns is None or self._token_column in columns:
            return dataset
        return prepared(self._prepare_rows, dataset)[0]

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self._remove_paths(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """As in `transformers.Trainer`, without the path of the base model on this machine."""
        super().create_model_card(*args, **kwargs)
        self._remove_paths()

    def _remove_paths(self, folder: str | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if is_peft_model(model) and self.is_world_process_zero():
            remove_paths_from_card(folder or self.args.output_dir, model)

    @property
    def tokenizer(self) -> Any:
        """The older name of `processing_class`."""
        return self.processing_class

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self.processing_class = tokenizer

    def push_to_hub(self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any) -> Any:
        """As in `transformers.Trainer`, with the tags of this trainer."""
        tagged = trl_sanitze_kwargs_for_tagging(self.model, self._tag_names, kwargs) or {}
        return super().push_to_hub(commit_message=commit_message, blocking=blocking, **tagged)


def trl_sanitze_kwargs_for_tagging(
    model: Any, tag_names: list[str], kwargs: dict[str, Any] | None = None
) -> dict[str, Any] | None:
    """`kwargs` of `push_to_hub` whose `tags`, a list or one, are joined by `tag_names`; None stays None.

    A model that unsloth has patched gets the tag "unsloth".
    """
    if kwargs is None:
        return None
    patched = is_unsloth_available() and getattr(model.config, "unsloth_version", None) is not None
    given = kwargs.get("tags") or []
    tags = [*([given] if isinstance(given, str) else given), *tag_names, *(["unsloth"] if patched else [])]
    return {**kwargs, "tags": tags}


def model_of(model: Any, init_kwargs: Mapping[str, Any] | None, name: str = "model") -> Any:
    """`model` itself, or the causal language model that it names.

    Args:
        model: a module, None, or a folder or hub name.
        init_kwargs: for `from_pretrained`; weights are float32 unless it says otherwise.
        name: the argument's name, for the error message.

    Raises:
        ValueError: there are `init_kwargs` for a model that is already built.
    """
    if isinstance(model, str):
        return load_pretrained(transformers.AutoModelForCausalLM, model, (), init_kwargs or {})
    if init_kwargs is not None:
        raise ValueError(f"{name}_init_kwargs is for a {name} given by name; this one is built already")
    return model


def arguments_of(args: Any, **changes: Any) -> Any:
    """A copy of `args`, or of the defaults if None, with `changes`: the caller's object is not modified."""
    args = copy.copy(transformers.TrainingArguments(output_dir="tmp_trainer") if args is None else args)
    for name, value in changes.items():
        setattr(args, name, value)
    return args


def each(dataset: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to a dataset, or to every one in a dictionary of them; None stays None."""
    if isinstance(dataset, dict):
        return {name: each(one, change) for name, one in dataset.items()}
    return None if dataset is None else change(dataset)


def prepared(prepare: Callable[[Any], Any], *datasets: Any) -> list[Any]:
    """`prepare` of `each`; the first process of a machine runs first, and the others find its files."""
    with PartialState().local_main_process_first():
        return [each(dataset, prepare) for dataset in datasets]


def mapped(dataset: Any, change: Callable[..., Any], num_proc: int | None = None, **options: Any) -> Any:
    """`dataset.map`, without processes for a stream, which is read in this one."""
    from datasets import IterableDataset

    if num_proc is not None and isinstance(dataset, IterableDataset):
        warn_user(f"dataset_num_proc={num_proc} has no effect on a stream")
        num_proc = None
    return dataset.map(change, **options, **({} if num_proc is None else {"num_proc": num_proc}))


def positions_of(model: Any) -> int | None:
    """The number of positions in the configuration of a model, None if it has none."""
    config = getattr(model, "config", None)
    return getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None


def length_or_default(value: int | None, default: int, name: str, model: Any = None) -> int:
    """`value`, or `default`, at most the positions of `model`, with a warning that says so."""
    if value is None:
        default = min(default, positions_of(model) or default)
        warn_user(f"{name} is not given: it is {default} tokens")
    return default if value is None else value
