"""`DPOTrainer`: trains a policy directly on pairs of answers, without a reward model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch.utils.data import DataLoader

from trl_step.algorithms.losses.preference import LOSS_TYPES, Logps, preference_losses, sequence_logps
from trl_step.data.collators import DPODataCollatorWithPadding
from trl_step.data.pairs import (
    chosen_above_rejected,
    tokenize_answer,
    tokenize_preference,
    tokenize_preference_for_encoder,
)
from trl_step.data.special_tokens import tokenizer_of
from trl_step.import_utils import is_wandb_available
from trl_step.models.inner_model import is_peft_model
from trl_step.models.notices import warn_user
from trl_step.models.shortcuts.modes import disable_dropout_in_model
from trl_step.trainer.text.configs import takes_settings
from trl_step.trainer.text.dpo_answers import sampled_answers, table_of_answers
from trl_step.trainer.text.dpo_metrics import ROWS, means_over_batches, means_over_rows
from trl_step.trainer.text.dpo_reference import REFERENCE_COLUMNS, ReferenceTrainer
from trl_step.trainer.text.dpo_rows import tokenized_later, tokenized_pairs
from trl_step.trainer.text.peft_setup import prepare_for_training
from trl_step.trainer.text.text_trainer import arguments_of, length_or_default, model_of, prepared

TrainEval = Literal["train", "eval"]


class DPOTrainer(ReferenceTrainer):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) and related losses.

    Args:
        model: a transformers model, a PeftModel, or a folder or hub name.
        ref_model: the reference; a model or a name, not `model` itself. None: the model's initial state: with an
            adapter the base model, or a frozen copy of the adapter if that one is already trained; else a copy of the
            model. With `model_init` it is that of the model that it builds.
        beta: strength of the regularization towards the reference; for "ipo" its tau.
        label_smoothing: fraction of labels assumed to be wrong (cDPO), 0 to 0.5; for "sigmoid".
        loss_type: "sigmoid", "hinge", "ipo" or "kto_pair", see `preference_losses`.
        args: `transformers.TrainingArguments`, or a `DPOConfig`, whose fields are the defaults of the others.
        data_collator: None: `DPODataCollatorWithPadding`.
        label_pad_token_id: the label that the loss ignores.
        padding_value: pads token ids; None: the tokenizer's padding token.
        truncation_mode: "keep_end" or "keep_start" of a prompt that is too long.
        train_dataset, eval_dataset: rows with the texts `prompt`, `chosen`, `rejected`. `eval_dataset` may be a
            dictionary of several.
        tokenizer: tokenizes the rows.
        model_init, callbacks, optimizers, preprocess_logits_for_metrics, compute_metrics: of `transformers.Trainer`.
        max_length: maximum tokens of prompt and answer; None: 512.
        max_prompt_length: tokens of the prompt that are kept if `max_length` is exceeded; None: 128.
        max_target_length: maximum tokens of an encoder-decoder's answer; None: 128.
        peft_config: train a new adapter. An existing adapter of the model is merged into it first.
        is_encoder_decoder: only with `model_init` in place of a model.
        disable_dropout: set dropout to 0 in both models.
        generate_during_eval: write answers of both models to a few prompts at each evaluation, as a table in wandb.
        precompute_ref_log_probs: compute the reference's log-probs once, before training. It then needs no memory of
            the accelerator; its copy stays in the host's memory, for rows that are evaluated later.
        dataset_num_proc: processes that tokenize.
        model_init_kwargs, ref_model_init_kwargs: for models given by name.
        model_adapter_name, ref_adapter_name: names of the trained adapter and of the reference one in a PeftModel.
        reference_free: the loss treats both answers as equally likely in the reference.
        processing_class: the newer name of `tokenizer`.

    Raises:
        ValueError: there is no tokenizer, no model and no `is_encoder_decoder`, the loss type is unknown, or
            `ref_model` would be trained with the model.
        ImportError: `generate_during_eval` without wandb.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "dpo"]
    _token_column = "prompt_input_ids"
    loss_is_scaled_for_ga = False

    @takes_settings
    def __init__(
        self,
        model: Any = None,
        ref_model: Any = None,
        beta: float = 0.1,
        label_smoothing: float = 0,
        loss_type: Literal["sigmoid", "hinge", "ipo", "kto_pair"] = "sigmoid",
        args: Any = None,
        data_collator: Any = None,
        label_pad_token_id: int = -100,
        padding_value: int | None = None,
        truncation_mode: str = "keep_end",
        train_dataset: Any = None,
        eval_dataset: Any = None,
        tokenizer: Any = None,
        model_init: Callable[[], Any] | None = None,
        callbacks: list | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable | None = None,
        max_length: int | None = None,
        max_prompt_length: int | None = None,
        max_target_length: int | None = None,
        peft_config: Any = None,
        is_encoder_decoder: bool | None = None,
        disable_dropout: bool = True,
        generate_during_eval: bool = False,
        compute_metrics: Callable[[Any], dict] | None = None,
        precompute_ref_log_probs: bool = False,
        dataset_num_proc: int | None = None,
        model_init_kwargs: dict | None = None,
        ref_model_init_kwargs: dict | None = None,
        model_adapter_name: str | None = None,
        ref_adapter_name: str | None = None,
        reference_free: bool = False,
        processing_class: Any = None,
    ) -> None:
        tokenizer = tokenizer_of(tokenizer, processing_class)
        _check_arguments(tokenizer, generate_during_eval, loss_type, label_smoothing)
        self.use_dpo_data_collator = data_collator is None
        args = arguments_of(args, **({"remove_unused_columns": False} if data_collator is None else {}))
        model = model_of(model, model_init_kwargs)
        ref_model = model_of(ref_model, ref_model_init_kwargs, "ref_model")
        self._peft_has_been_casted_to_bf16 = False
        prepare_model = partial(self._prepared, peft_config=peft_config, args=args, disable_dropout=disable_dropout)
        if model is not None:
            model = prepare_model(model)
            is_encoder_decoder = model.config.is_encoder_decoder
        if is_encoder_decoder is None:
            raise ValueError("without a model, say whether model_init builds an encoder-decoder: is_encoder_decoder=")

        self.is_encoder_decoder = is_encoder_decoder
        self.is_peft_model = is_peft_model(model)
        self.model_adapter_name = model_adapter_name
        self.ref_adapter_name = ref_adapter_name
        self.reference_free = reference_free
        self.precompute_ref_log_probs = precompute_ref_log_probs
        reference = self._reference_of(model, ref_model)
        if disable_dropout and reference is not None:
            disable_dropout_in_model(reference)

        self.beta = beta
        self.label_smoothing = label_smoothing
        self.loss_type = loss_type
        self._take_lengths(model, max_length, max_prompt_length, max_target_length)
        self.truncation_mode = truncation_mode
        self.label_pad_token_id = label_pad_token_id
        self.padding_value = tokenizer.pad_token_id if padding_value is None else padding_value
        self.generate_during_eval = generate_during_eval
        self.dataset_num_proc = dataset_num_proc
        self._stored_metrics: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
        # tokenize before the trainer holds a model: datasets hashes everything that a row function refers to
        self.processing_class = tokenizer
        prepare_rows = partial(tokenized_pairs, self.tokenize_row, dataset_num_proc)
        train_dataset, eval_dataset = prepared(prepare_rows, train_dataset, eval_dataset)
        self._prepare_rows = partial(tokenized_later, self.tokenize_row)
        super().__init__(
            tokenizer,
            reference,
            model=model,
            args=args,
            data_collator=data_collator
            or DPODataCollatorWithPadding(tokenizer.pad_token_id, label_pad_token_id, is_encoder_decoder),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            prepare_model=prepare_model,
            model_init=model_init,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )

    def _prepared(self, model: Any, peft_config: Any, args: Any, disable_dropout: bool) -> Any:
        """`model` as it is trained: with a new adapter if there is a configuration of one."""
        if peft_config is not None and is_peft_model(model):
            model = model.merge_and_unload()
        model, self._peft_has_been_casted_to_bf16 = prepare_for_training(model, peft_config, args)
        if disable_dropout:
            disable_dropout_in_model(model)
        return model

    def _take_lengths(
        self, model: Any, max_length: int | None, max_prompt_length: int | None, max_target_length: int | None
    ) -> None:
        self.max_length = length_or_default(max_length, 512, "max_length", model)
        self.max_prompt_length = length_or_default(max_prompt_length, 128, "max_prompt_length")
        if self.is_encoder_decoder:
            max_target_length = length_or_default(max_target_length, 128, "max_target_length")
        self.max_target_length = max_target_length

    # --- rows to batches -------------------------------------------------------------------------------------

    def build_tokenized_answer(self, prompt: str, answer: str) -> dict[str, list[int]]:
        """The tokens of prompt and answer, see `trl_step.data.pairs.tokenize_answer`."""
        return tokenize_answer(self.tokenizer, prompt, answer)

    def tokenize_row(self, feature: Mapping[str, Any], model: Any = None) -> dict[str, Any]:
        """A row with the texts `prompt`, `chosen`, `rejected` as token ids, see `trl_step.data.pairs`.

        Args:
            feature: the row.
            model: an encoder-decoder that builds its own `decoder_input_ids`.

        Raises:
            ValueError: one of the three is not a text.
        """
        for name in ("prompt", "chosen", "rejected"):
            if not isinstance(feature[name], str):
                raise ValueError(f"{name} must be a text, not {type(feature[name]).__name__}: {feature[name]!r:.80}")
        if self.is_encoder_decoder:
            return tokenize_preference_for_encoder(
                feature, self.tokenizer, self.max_prompt_length, self.max_target_length, model
            )
        return tokenize_preference(
            feature,
            self.tokenizer,
            self.build_tokenized_answer,
            self.max_length,
            self.max_prompt_length,
            self.truncation_mode,
            self.label_pad_token_id,
        )

    @staticmethod
    def concatenated_inputs(
        batch: Mapping[str, Any],
        is_encoder_decoder: bool = False,
        label_pad_token_id: int = -100,
        padding_value: int = 0,
        device: Any = None,
    ) -> dict[str, torch.Tensor]:
        """Chosen, then rejected: `concatenated_input_ids`, `_attention_mask`, `_labels`, int64 [2B, T], for one pass.

        An encoder gets the prompts twice. Other columns that begin with `chosen_` are concatenated the same way.
        """
        joined = chosen_above_rejected(batch, is_encoder_decoder, label_pad_token_id, padding_value)
        return {name: tensor.to(device) for name, tensor in joined.items()}

    # --- the loss --------------------------------------------------------------------------------------------

    def concatenated_forward(
        self, model: Any, batch: Mapping[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """One pass over chosen and rejected: log-probs [B] of both, logits [B, T, V] of both."""
        joined = self.concatenated_inputs(
            batch, self.is_encoder_decoder, self.label_pad_token_id, self.padding_value, self.accelerator.device
        )
        extra = {}
        if self.is_encoder_decoder:
            extra = {
                "labels": joined["concatenated_labels"],
                "decoder_input_ids": joined.get("concatenated_decoder_input_ids"),
            }
        logits = model(
            joined["concatenated_input_ids"],
            attention_mask=joined["concatenated_attention_mask"],
            use_cache=False,
            **extra,
        ).logits
        logps = self.get_batch_logps(
            logits,
            joined["concatenated_labels"],
            average_log_prob=self.loss_type == "ipo",
            is_encoder_decoder=self.is_encoder_decoder,
            label_pad_token_id=self.label_pad_token_id,
        )
        count = len(batch["chosen_labels"])
        return logps[:count], logps[count:], logits[:count], logits[count:]

    @staticmethod
    def get_batch_logps(
        logits: torch.Tensor,
        labels: torch.Tensor,
        average_log_prob: bool = False,
        label_pad_token_id: int = -100,
        is_encoder_decoder: bool = False,
    ) -> torch.Tensor:
        """Log-prob of each row's labels [B], see `sequence_logps`.

        Args:
            logits: [B, T, V].
            labels: int64 [B, T]; those of a decoder alone are predicted one position earlier.
            average_log_prob: the mean over the counted labels in place of their sum.
            label_pad_token_id: the label that does not count.
            is_encoder_decoder: logits and labels stand at the same position.

        Raises:
            ValueError: the shapes do not fit.
        """
        return sequence_logps(logits, labels, average_log_prob, label_pad_token_id, is_encoder_decoder)

    def dpo_loss(
        self,
        policy_chosen_logps: torch.Tensor,
        policy_rejected_logps: torch.Tensor,
        reference_chosen_logps: torch.Tensor,
        reference_rejected_logps: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Losses, see `preference_losses`, and the implied rewards of chosen and rejected [B], without a gradient.

        Args:
            policy_chosen_logps: log-probs [B], with a gradient.
            policy_rejected_logps: the same for the rejected answers.
            reference_chosen_logps: the reference's, without one.
            reference_rejected_logps: the same for the rejected answers.
        """
        device = self.accelerator.device
        policy = Logps(policy_chosen_logps.to(device), policy_rejected_logps.to(device))
        reference = Logps(reference_chosen_logps.to(device), reference_rejected_logps.to(device))
        losses = preference_losses(
            policy, reference, self.loss_type, self.beta, self.label_smoothing, self.reference_free
        )
        chosen_rewards, rejected_rewards = (
            self.beta * (ours - theirs).detach() for ours, theirs in zip(policy, reference, strict=True)
        )
        return losses, chosen_rewards, rejected_rewards

    def get_batch_loss_metrics(
        self, model: Any, batch: dict[str, Any], train_eval: TrainEval = "train"
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The batch's mean loss, and its means of rewards, log-probs and logits, 0-d tensors."""
        chosen_logps, rejected_logps, chosen_logits, rejected_logits = self.concatenated_forward(model, batch)
        if set(REFERENCE_COLUMNS) <= set(batch):
            reference = tuple(batch[name] for name in REFERENCE_COLUMNS)
        else:
            reference = self.compute_reference_log_probs(batch)
        losses, chosen_rewards, rejected_rewards = self.dpo_loss(chosen_logps, rejected_logps, *reference)
        means = {
            "rewards/chosen": chosen_rewards,
            "rewards/rejected": rejected_rewards,
            "rewards/accuracies": (chosen_rewards > rejected_rewards).float(),
            "rewards/margins": chosen_rewards - rejected_rewards,
            "logps/rejected": rejected_logps,
            "logps/chosen": chosen_logps,
            "logits/rejected": rejected_logits,
            "logits/chosen": chosen_logits,
        }
        prefix = "eval_" if train_eval == "eval" else ""
        # differs from v0.7: means of 16-bit logits and log-probs are taken in float32
        float32 = {
            f"{prefix}{name}": values.detach().mean(dtype=_at_least_float32(values.dtype))
            for name, values in means.items()
        }
        return losses.mean(), float32

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's mean loss; with `return_outputs` also its metrics. The metrics are stored for the next log."""
        with self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, "train")
        self.store_metrics(metrics, "train")
        return (loss, metrics) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The batch's loss, its mean logits of chosen and rejected [2], and zeros [2]."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self._autocast():
            loss, metrics = self.get_batch_loss_metrics(model, inputs, "eval")
        self.store_metrics({**metrics, ROWS: len(inputs["chosen_labels"])}, "eval")
        if prediction_loss_only:
            return loss, None, None
        names = [f"eval_logits/{side}" for side in ("chosen", "rejected")]
        logits = torch.stack([metrics[name] for name in names if name not in (ignore_keys or ())])
        return loss, logits, torch.zeros_like(logits)

    # --- logs ------------------------------------------------------------------------------------------------

    def store_metrics(self, metrics: dict[str, Any], train_eval: TrainEval = "train") -> None:
        """Keep the metrics of a batch for the next log."""
        for name, value in metrics.items():
            self._stored_metrics[train_eval][name].append(value)

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """As in `transformers.Trainer`, with the means of the metrics stored since the last log, over all processes."""
        stored = self._stored_metrics.pop("train" if "loss" in logs else "eval", {})
        logs |= means_over_batches(stored, self.accelerator)
        super().log(logs, start_time)

    def get_batch_samples(self, model: Any, batch: Any, device: Any = None) -> Any:
        """Sampled answers of the policy and of the reference to the batch's prompts: two lists of texts.

        Those of a decoder begin with the prompts.

        `transformers.Trainer` has a method of this name for another purpose; a call with a `device` is forwarded to
        it.

        Args:
            model: the policy.
            batch: `prompt_input_ids`, `prompt_attention_mask`, int64 [B, T].
            device: None.
        """
        if device is not None:
            return super().get_batch_samples(model, batch, device)
        return self._sampled_answers(model, batch, with_prompt=True)

    def _sampled_answers(self, model: Any, batch: Any, with_prompt: bool) -> tuple[list[str], list[str]]:
        with self._autocast():
            options = (batch, self.tokenizer, self.max_length, with_prompt)
            policy = sampled_answers(self.accelerator.unwrap_model(model), *options)
            with self._reference() as reference:
                references = sampled_answers(self.accelerator.unwrap_model(reference), *options)
        return policy, references

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in `transformers.Trainer`, with the means over rows of rewards, log-probs and logits.

        First, if requested, logs answers to one random batch to wandb.

        Returns:
            Its metrics, and `{metric_key_prefix}_rewards/chosen` and so on.
        """
        if self.generate_during_eval:

            def answers_to(rows: list[Any]) -> Any:
                batch = self._prepare_inputs(self.data_collator(rows))
                return self._sampled_answers(self.model, batch, with_prompt=False)

            table = table_of_answers(dataloader.dataset, self.args.eval_batch_size, answers_to)
            self.log({"game_log": table})
            self.state.log_history.pop()  # a table cannot be written to the state's JSON
        self._stored_metrics.pop("eval", None)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        # differs from v0.7: means over rows, under the prefix; there means over batches, under "eval" in the next log
        for name, mean in means_over_rows(self._stored_metrics.pop("eval", {}), self.accelerator).items():
            output.metrics[f"{metric_key_prefix}_{name.removeprefix('eval_')}"] = mean
        return output


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _check_arguments(tokenizer: Any, generate_during_eval: bool, loss_type: str, label_smoothing: float) -> None:
    if tokenizer is None:
        raise ValueError("DPOTrainer needs a tokenizer for its rows: pass tokenizer=")
    if generate_during_eval and not is_wandb_available():
        raise ImportError("generate_during_eval logs a table with wandb: pip install wandb")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type {loss_type!r} is unknown: use one of {', '.join(LOSS_TYPES)}")
    if label_smoothing and loss_type != "sigmoid":
        warn_user(f"label_smoothing={label_smoothing} has no effect with loss_type={loss_type!r}")
