"""`RewardTrainer`: trains a model to score texts, from pairs of a better and a worse one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from trl_step.data.collators import PAIR_COLUMNS, RewardDataCollatorWithPadding
from trl_step.data.pairs import tokenize_pair_for_rewards
from trl_step.data.special_tokens import tokenizer_of
from trl_step.models.notices import warn_user
from trl_step.trainer.reward_config import RewardConfig
from trl_step.trainer.text.peft_setup import for_scores, prepare_for_training, warn_of_a_frozen_head
from trl_step.trainer.text.text_trainer import TextTrainer, arguments_of, length_or_default, prepared

DEFAULT_LENGTH = 512


def compute_accuracy(eval_pred: Any) -> dict[str, float]:
    """Fraction of pairs whose chosen text got the higher score.

    Args:
        eval_pred: `transformers.EvalPrediction` or a tuple: predictions [N, 2], chosen first, and labels [N], 0 where
            the first one should win.

    Returns:
        `accuracy`. A tie counts for the chosen text, with a warning.
    """
    predictions, labels = eval_pred
    predictions = np.asarray(predictions)
    ties = int((predictions[:, 0] == predictions[:, 1]).sum())
    if ties:
        warn_user(f"{ties} of {len(predictions)} pairs have two equal scores: the accuracy counts them as right")
    return {"accuracy": float((predictions.argmax(axis=1) == np.asarray(labels)).mean())}


class RewardTrainer(TextTrainer):
    """Trains a sequence classifier with one label on pairs: the chosen text's score rises above the rejected one's.

    The loss of a pair is -log sigmoid(score of chosen - score of rejected - margin) (Ouyang et al. 2022, eq. 1; the
    margin: Touvron et al. 2023, eq. 2).

    Args:
        model: such as `AutoModelForSequenceClassification` with `num_labels=1`, or a PeftModel.
        args: `RewardConfig`, or `TrainingArguments`.
        data_collator: None: `RewardDataCollatorWithPadding`.
        train_dataset, eval_dataset: rows with `input_ids_chosen`, `attention_mask_chosen`, `input_ids_rejected`,
            `attention_mask_rejected`; or with the texts (or lists of messages) `chosen` and `rejected`, and `prompt`
            if it precedes both. `margin`, a number, is optional. `eval_dataset` may be a dictionary of several.
        tokenizer: pads, and tokenizes texts.
        model_init, callbacks, optimizers, preprocess_logits_for_metrics: of `transformers.Trainer`.
        compute_metrics: None: `compute_accuracy`. It gets the pairs' softmaxed scores [N, 2] and zeros [N].
        max_length: maximum tokens of a text. None: `args.max_length`, or 512.
        peft_config: `peft.PeftConfig`: train an adapter and the score head, with the task_type "SEQ_CLS", whatever it
            says.
        processing_class: the newer name of `tokenizer`.

    Raises:
        ValueError: two lengths are given; there is no tokenizer for the default collator.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "reward-trainer"]
    _token_column = "input_ids_chosen"
    loss_is_scaled_for_ga = False

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
        max_length: int | None = None,
        peft_config: Any = None,
        processing_class: Any = None,
    ) -> None:
        tokenizer = tokenizer_of(tokenizer, processing_class)
        self.use_reward_data_collator = data_collator is None
        configured = args.max_length if isinstance(args, RewardConfig) else None
        if max_length is not None and configured is not None:
            raise ValueError(f"max_length={max_length} and args.max_length={configured} are both given: keep one")
        if data_collator is None:
            if tokenizer is None:
                raise ValueError("the default collator pads with the tokenizer: pass tokenizer=, or a data_collator")
            max_length = length_or_default(configured or max_length, DEFAULT_LENGTH, "RewardConfig.max_length", model)
            data_collator = RewardDataCollatorWithPadding(tokenizer, max_length=max_length)
            args = arguments_of(args, remove_unused_columns=False)
            processes = getattr(args, "dataset_num_proc", None)
            tokenize = partial(_tokenized, tokenizer=tokenizer, max_length=max_length, num_proc=processes)
            train_dataset, eval_dataset = prepared(tokenize, train_dataset, eval_dataset)
            self._prepare_rows = tokenize
        args = arguments_of(args)

        def prepare_model(model: Any) -> Any:
            adapter = None if peft_config is None else for_scores(peft_config)
            model, _ = prepare_for_training(model, adapter, args)
            warn_of_a_frozen_head(model)
            _set_pad_token(model, tokenizer)
            return model

        if model is not None:
            model = prepare_model(model)
        super().__init__(
            tokenizer,
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            prepare_model=prepare_model,
            model_init=model_init,
            compute_metrics=compute_metrics or compute_accuracy,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The mean loss of the batch's pairs, a 0-d tensor; with `return_outputs` also both scores, [B, 1] each."""
        scores = {
            side: model(input_ids=inputs[f"input_ids_{side}"], attention_mask=inputs[f"attention_mask_{side}"]).logits
            for side in ("chosen", "rejected")
        }
        # differs from v0.7: scores of 16-bit weights are compared in float32
        chosen, rejected = (score.to(torch.promote_types(score.dtype, torch.float32)) for score in scores.values())
        difference = chosen - rejected
        if "margin" in inputs:
            margin = inputs["margin"]
            as_v07 = isinstance(self.args, RewardConfig) and self.args.exact_v07
            # differs from v0.7: a pair's margin [B] is taken from its own difference [B, 1], not from all
            difference = difference - (margin if as_v07 else margin.view(-1, 1))
        loss = -F.logsigmoid(difference).mean()
        if return_outputs:
            return loss, {f"rewards_{side}": score for side, score in scores.items()}
        return loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The loss, both scores of each pair softmaxed [B, 2], and zeros [B]: the first one should win."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss, None, None
        kept = [score.float().mean(dim=1) for name, score in outputs.items() if name not in (ignore_keys or ())]
        preferences = torch.stack(kept, dim=1).softmax(dim=1)
        return loss, preferences, preferences.new_zeros(len(preferences))


def _tokenized(dataset: Any, tokenizer: Any, max_length: int, num_proc: int | None) -> Any:
    """`dataset` with token columns; one that has them already is returned unchanged."""
    columns = getattr(dataset, "column_names", None)
    if columns is None or set(PAIR_COLUMNS) <= set(columns) or not {"chosen", "rejected"} <= set(columns):
        return dataset
    return dataset.map(
        tokenize_pair_for_rewards,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=[name for name in columns if name != "margin"],
        **({} if num_proc is None else {"num_proc": num_proc}),  # a stream takes none
    )


def _set_pad_token(model: Any, tokenizer: Any) -> None:
    """A classifier reads the last token before the padding, so it must know the padding token of the batches."""
    if getattr(tokenizer, "pad_token_id", None) is None:
        return
    # differs from v0.7: a padding token of the configuration gives way to the tokenizer's
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
