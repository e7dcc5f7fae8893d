"""`SFTTrainer`: trains a language model on texts, whole or packed, or only on their responses."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar

import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling
from transformers.integrations.neftune import neftune_post_forward_hook

from trl_step.core import is_list
from trl_step.data.collators import DataCollatorForCompletionOnlyLM, DataCollatorForTexts, padding_on_the_right
from trl_step.data.formatting import features_of, get_formatting_func_from_dataset
from trl_step.data.packing import ConstantLengthDataset
from trl_step.data.special_tokens import tokenizer_of, tokens_of
from trl_step.models.notices import warn_user
from trl_step.trainer.text.configs import takes_settings
from trl_step.trainer.text.peft_setup import prepare_for_training
from trl_step.trainer.text.target_mean import TargetMeanTrainer
from trl_step.trainer.text.text_trainer import (
    arguments_of,
    mapped,
    model_of,
    positions_of,
    prepared,
)


class SFTTrainer(TargetMeanTrainer):
    """Supervised fine-tuning on a column of texts.

    Args:
        model: a causal language model, a PeftModel, or a folder or hub name.
        args: `transformers.TrainingArguments`, or an `SFTConfig`, whose fields are the defaults of the others.
        data_collator: None: for language modeling, which pads on the right and ignores padding alone; see also
            `DataCollatorForCompletionOnlyLM`.
        train_dataset, eval_dataset: rows of text; rows of `messages`, `conversations`, or `prompt` and `completion`,
            which the tokenizer's chat template turns into texts; they may be streamed. A torch dataset, such as
            `ConstantLengthDataset`, is used unchanged. `eval_dataset` may be a dictionary of several.
        tokenizer: None: that of the model's folder.
        model_init, compute_metrics, callbacks, optimizers, preprocess_logits_for_metrics: of `transformers.Trainer`.
        peft_config: `peft.PeftConfig`: train an adapter.
        dataset_text_field: the column with the text.
        packing: join the texts and cut rows of `max_seq_length` tokens, whose order comes from `args.seed`.
        formatting_func: from a row to its text with `packing`, else from a batch of rows (columns as lists) to a list
            of texts.
        max_seq_length: maximum tokens of a text, tokens of a packed row; None: the limit of tokenizer and
            model, at most 1024.
        infinite: has no effect; set `max_steps`.
        num_of_sequences, chars_per_token: of `ConstantLengthDataset`.
        dataset_num_proc, dataset_batch_size: processes and batch size of the tokenization.
        neftune_noise_alpha: noise on the embeddings (Jain et al. 2023, arXiv:2310.05914); overrides that of `args`.
        model_init_kwargs: for a model given by name.
        dataset_kwargs: `add_special_tokens`, and with packing `append_concat_token`, see `ConstantLengthDataset`;
            `skip_prepare_dataset`: use rows as they are, as those with `input_ids` are if no text is named.
        processing_class: the newer name of `tokenizer`.

    Raises:
        ValueError: neither a text column nor a `formatting_func` is known; completion-only batches are requested with
            packing; `formatting_func` returns one text for a batch; the texts are too short for one packed row; there
            is neither tokenizer nor model.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "sft"]

    # of a subclass for release 0.7 whose constructor never calls this one
    dataset_num_proc: int | None = None
    dataset_batch_size = 1000
    _packing_seed = 42

    @takes_settings
    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Callable[[], Any] | None = None,
        compute_metrics: Callable[[Any], dict] | None = None,
        callbacks: list | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable | None = None,
        peft_config: Any = None,
        dataset_text_field: str | None = None,
        packing: bool | None = False,
        formatting_func: Callable | None = None,
        max_seq_length: int | None = None,
        infinite: bool | None = None,
        num_of_sequences: int | None = 1024,
        chars_per_token: float | None = 3.6,
        dataset_num_proc: int | None = None,
        dataset_batch_size: int = 1000,
        neftune_noise_alpha: float | None = None,
        model_init_kwargs: dict | None = None,
        dataset_kwargs: dict | None = None,
        processing_class: Any = None,
    ) -> None:
        if infinite is not None:
            warn_user("infinite has no effect: args.max_steps or args.num_train_epochs says how long training takes")
        if packing and isinstance(data_collator, DataCollatorForCompletionOnlyLM):
            raise ValueError("a packed row holds several texts: DataCollatorForCompletionOnlyLM needs packing=False")
        noise = {} if neftune_noise_alpha is None else {"neftune_noise_alpha": neftune_noise_alpha}
        args = arguments_of(args, **noise)
        model = model_of(model, model_init_kwargs)
        tokenizer = tokenizer_of(tokenizer, processing_class) or _tokenizer_beside(model)

        def prepare_model(model: Any) -> Any:
            return prepare_for_training(model, peft_config, args)[0]

        model = prepare_model(model)
        if max_seq_length is None:
            max_seq_length = min(tokenizer.model_max_length, 1024, positions_of(model) or 1024)
            warn_user(f"max_seq_length is not given: it is {max_seq_length}")
        if data_collator is not None and tokenizer.padding_side != "right":
            warn_user("the tokenizer pads on the left: if data_collator does so too, absolute positions are shifted")
        if type(data_collator) is DataCollatorForLanguageModeling and not data_collator.mlm:
            _warn_of_end_tokens(data_collator.tokenizer)
        if formatting_func is None and dataset_text_field is None:
            formatting_func = get_formatting_func_from_dataset(train_dataset, tokenizer)
        if data_collator is None and not packing:
            # differs from v0.7: on the right whatever the tokenizer's side
            data_collator = DataCollatorForTexts(padding_on_the_right(tokenizer), mlm=False)

        dataset_kwargs = dict(dataset_kwargs or {})
        skips = dataset_kwargs.pop("skip_prepare_dataset", False)
        self.dataset_num_proc, self.dataset_batch_size, self._packing_seed = (
            dataset_num_proc, dataset_batch_size, args.seed,
        )  # fmt: skip
        texts = dataset_text_field, max_seq_length, formatting_func
        packs = num_of_sequences, chars_per_token, args.remove_unused_columns

        def prepare_rows(rows: Any) -> Any:
            return rows if skips else self._prepare_dataset(rows, tokenizer, packing, *texts, *packs, **dataset_kwargs)

        train_dataset, eval_dataset = prepared(prepare_rows, train_dataset, eval_dataset)
        self._prepare_rows = prepare_rows
        if packing and isinstance(train_dataset, ConstantLengthDataset):
            train_dataset.infinite = args.max_steps > 0
        super().__init__(
            tokenizer,
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            prepare_model=prepare_model,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    # --- methods that subclasses of release 0.7 override, with its arguments --------------------------------------

    def _prepare_dataset(
        self,
        dataset: Any,
        tokenizer: Any,
        packing: bool | None,
        dataset_text_field: str | None,
        max_seq_length: int,
        formatting_func: Callable | None,
        num_of_sequences: int | None,
        chars_per_token: float | None,
        remove_unused_columns: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """Rows with `input_ids` of rows with texts; what has tokens already stays as it is."""
        if not _has_texts(dataset, dataset_text_field is not None or formatting_func is not None):
            return dataset
        texts = tokenizer, dataset, dataset_text_field, max_seq_length
        if packing:
            joins = formatting_func, append_concat_token, add_special_tokens
            return self._prepare_packed_dataloader(*texts, num_of_sequences, chars_per_token, *joins, **options)
        return self._prepare_non_packed_dataloader(
            *texts, formatting_func, add_special_tokens, remove_unused_columns, **options
        )

    def _prepare_non_packed_dataloader(
        self,
        tokenizer: Any,
        dataset: Any,
        dataset_text_field: str | None,
        max_seq_length: int,
        formatting_func: Callable | None = None,
        add_special_tokens: bool = True,
        remove_unused_columns: bool = True,
    ) -> Any:
        """See `prepare_texts`."""
        texts = dataset_text_field, formatting_func, max_seq_length
        processes, batch_size = self.dataset_num_proc, self.dataset_batch_size
        return prepare_texts(
            dataset, tokenizer, *texts, remove_unused_columns, add_special_tokens, processes, batch_size
        )

    def _prepare_packed_dataloader(
        self,
        tokenizer: Any,
        dataset: Any,
        dataset_text_field: str | None,
        max_seq_length: int,
        num_of_sequences: int | None,
        chars_per_token: float | None,
        formatting_func: Callable | None = None,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
        **options: Any,
    ) -> Any:
        """See `prepare_packed`."""
        return prepare_packed(
            dataset,
            tokenizer,
            dataset_text_field,
            formatting_func,
            max_seq_length,
            self._packing_seed,
            num_of_sequences=num_of_sequences,
            chars_per_token=chars_per_token,
            append_concat_token=append_concat_token,
            add_special_tokens=add_special_tokens,
            **options,
        )

    def _trl_activate_neftune(self, model: Any) -> Any:
        """Noise on the input embeddings of `model` from now on; `self.neftune_hook_handle.remove()` ends it.

        `train` does so by itself.
        """
        embeddings = self.accelerator.unwrap_model(model).get_input_embeddings()
        embeddings.neftune_noise_alpha = self.neftune_noise_alpha
        self.neftune_hook_handle = embeddings.register_forward_hook(neftune_post_forward_hook)
        return model


def prepare_texts(
    dataset: Any,
    tokenizer: Any,
    dataset_text_field: str | None,
    formatting_func: Callable | None,
    max_seq_length: int,
    remove_unused_columns: bool = True,
    add_special_tokens: bool = True,
    num_proc: int | None = None,
    batch_size: int = 1000,
) -> Any:
    """`dataset` with `input_ids` and `attention_mask`, one row per text; arguments are those of `SFTTrainer`."""
    _require_text(dataset_text_field, formatting_func)

    def tokenize(rows: Any) -> dict[str, Any]:
        # the column takes precedence if both are given
        texts = rows[dataset_text_field] if formatting_func is None or dataset_text_field else formatting_func(rows)
        if not is_list(texts):
            raise ValueError(
                "formatting_func gets a batch of rows, each column a list, and must return a list of texts, not "
                f"{type(texts).__name__}"
            )
        return tokens_of(tokenizer, list(texts), max_seq_length, add_special_tokens)

    return mapped(
        dataset,
        tokenize,
        num_proc,
        batched=True,
        batch_size=batch_size,
        remove_columns=list(features_of(dataset) or ()) if remove_unused_columns else None,
    )


def prepare_packed(
    dataset: Any,
    tokenizer: Any,
    dataset_text_field: str | None,
    formatting_func: Callable | None,
    max_seq_length: int,
    seed: int,
    **options: Any,
) -> Any:
    """Rows of `max_seq_length` tokens, see `ConstantLengthDataset`, which gets the `options`.

    They are a dataset on disk, or packed on the fly for a streamed `dataset`. Their order comes from `seed` alone: it
    is the same on every process, and in a run that resumes from a checkpoint.
    """
    from datasets import Dataset, IterableDataset
    from datasets.fingerprint import generate_random_fingerprint

    _require_text(dataset_text_field, formatting_func)
    packed = ConstantLengthDataset(
        tokenizer, dataset, dataset_text_field, formatting_func, seq_length=max_seq_length, **options
    )
    # differs from v0.7: there the order came from the global random stream
    packed.stream = random.Random(seed)
    if isinstance(dataset, IterableDataset):
        return packed
    rows = iter(packed)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"all texts together are shorter than one row of max_seq_length={max_seq_length} tokens")
    # a generator has no contents to identify a cached file
    return Dataset.from_generator(lambda: chain((first,), rows), fingerprint=generate_random_fingerprint())


def _has_texts(dataset: Any, text_is_named: bool) -> bool:
    """A torch dataset has tokens; a stream without a known text column may have them too."""
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):  # datasets makes it a torch dataset as well
        return text_is_named
    if not text_is_named and "input_ids" in (getattr(dataset, "column_names", None) or ()):
        return False
    return not isinstance(dataset, torch.utils.data.Dataset)


def _warn_of_end_tokens(tokenizer: Any) -> None:
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        warn_user(
            "pad_token is eos_token, and transformers' DataCollatorForLanguageModeling ignores both: the end of a text "
            "is never trained. Leave data_collator out, or give the tokenizer a pad_token of its own"
        )


def _require_text(dataset_text_field: str | None, formatting_func: Callable | None) -> None:
    if dataset_text_field is None and formatting_func is None:
        raise ValueError("the column with the text is unknown: pass dataset_text_field, its name, or formatting_func")


def _tokenizer_beside(model: Any) -> Any:
    """The tokenizer of the folder or repository that the model was loaded from."""
    if model is None:
        raise ValueError("without a model there is no folder to load the tokenizer from: pass tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
