"""`IterativeSFTTrainer`: supervised fine-tuning as a step API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch.utils.data import DataLoader
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from trl_step import core
from trl_step.data.collators import DataCollatorForTexts, padding_on_the_right
from trl_step.data.special_tokens import tokenizer_of, tokens_of
from trl_step.models.inner_model import is_peft_model
from trl_step.models.notices import warn_user
from trl_step.trainer.processes.accelerate_state import detach, own_accumulation
from trl_step.trainer.text.target_mean import TargetMeanTrainer

IGNORED = -100
TRUNCATION_SIDES = {"keep_end": "left", "keep_start": "right"}


class IterativeSFTTrainer(TargetMeanTrainer):
    """Optimizer steps on texts that the caller chooses: `trainer.step(texts=...)` or `step(input_ids, ...)`.

    With `args.gradient_accumulation_steps` the loss of each batch is the mean over its own targets, as in release
    0.7.11, and an update follows the mean of these losses. It is not the mean over all targets of the accumulated
    batches, as in `SFTTrainer`: the next batch may be that of a later call of `step`, whose targets are not known yet.

    Args:
        model: a causal or encoder-decoder transformers model, or a PeftModel.
        args: `transformers.TrainingArguments`; `max_steps` ends the learning-rate schedule.
        tokenizer: pads and tokenizes; its `truncation_side` is set from `truncation_mode`.
        optimizers: optimizer and scheduler; None: those of `args`.
        data_collator: None: for language modeling, which pads on the right, or `DataCollatorForSeq2Seq`.
        eval_dataset: evaluated every `args.eval_steps`.
        max_length: maximum tokens of a text; None: no limit.
        truncation_mode: "keep_end" or "keep_start".
        preprocess_logits_for_metrics, compute_metrics: of `transformers.Trainer`.
        optimize_device_cache: free the accelerator's cached memory after each step.
        processing_class: the newer name of `tokenizer`.

    Raises:
        ValueError: there is no tokenizer or model, the schedule has no length, or the mode is unknown.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "iterative-sft"]
    model: Any
    optimizer: Any

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        tokenizer: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        data_collator: Any = None,
        eval_dataset: Any = None,
        max_length: int | None = None,
        truncation_mode: str | None = "keep_end",
        preprocess_logits_for_metrics: Callable | None = None,
        compute_metrics: Callable[[Any], dict] | None = None,
        optimize_device_cache: bool | None = False,
        processing_class: Any = None,
    ) -> None:
        tokenizer = tokenizer_of(tokenizer, processing_class)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}")
        if model is None:
            raise ValueError("IterativeSFTTrainer needs a model")
        if truncation_mode not in TRUNCATION_SIDES:
            raise ValueError(f"truncation_mode must be 'keep_end' or 'keep_start', not {truncation_mode!r}")
        if optimizers[1] is None and (args is None or args.max_steps <= 0):
            raise ValueError("without a scheduler, args.max_steps must say how many optimizer steps there will be")
        self.is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self.is_peft_model = is_peft_model(model)
        self.max_length = max_length
        self.truncation_mode = truncation_mode
        self.optimize_device_cache = bool(optimize_device_cache)
        tokenizer.truncation_side = TRUNCATION_SIDES[truncation_mode]
        if data_collator is None and self.is_encoder_decoder:
            data_collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=8)
        elif data_collator is None:
            # differs from v0.7: on the right whatever the tokenizer's side
            data_collator = DataCollatorForTexts(padding_on_the_right(tokenizer), mlm=False)
        super().__init__(
            tokenizer,
            model=model,
            args=args,
            data_collator=data_collator,
            eval_dataset=eval_dataset,
            compute_metrics=compute_metrics,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        self.create_optimizer_and_scheduler(self.args.max_steps)
        own_accumulation(self.accelerator, self.args.gradient_accumulation_steps)
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        detach(self.accelerator, self.optimizer)
        self._losses: list[torch.Tensor] = []

    def prepare_model_inputs(
        self,
        input_ids: Sequence[torch.Tensor],
        attention_mask: Sequence[torch.Tensor] | None,
        labels: Sequence[torch.Tensor] | None,
    ) -> dict[str, torch.Tensor]:
        """Padded `input_ids`, `attention_mask`, `labels`, int64 [B, T], from ragged rows, each cut to `max_length`.

        Args:
            input_ids: the rows, each int64 [T].
            attention_mask: None: every token is seen.
            labels: None, for a decoder: the rows themselves, except padding tokens. A decoder's labels are as long as
                their rows.
        """
        kept = self._kept()
        masks = [torch.ones_like(ids) for ids in input_ids] if attention_mask is None else attention_mask
        # differs from v0.7: the limit cuts tokens of each row, there it cut the batch
        rows: list[dict[str, Any]] = [
            {"input_ids": ids[kept], "attention_mask": mask[kept]} for ids, mask in zip(input_ids, masks, strict=True)
        ]
        if self.is_encoder_decoder:
            for row, row_labels in zip(rows, labels or (), strict=True):
                row["labels"] = row_labels[kept]
        batch = dict(self.data_collator(rows))
        if self.is_encoder_decoder:
            batch.pop("decoder_input_ids", None)  # the model derives them from the labels
            if self.tokenizer.pad_token_id != self.tokenizer.eos_token_id:  # the collator has marked its own padding
                batch["labels"][batch["labels"] == self.tokenizer.pad_token_id] = IGNORED
        elif labels is not None:
            # differs from v0.7: labels given for a decoder are trained on, there they were dropped
            batch["labels"] = torch.full_like(batch["labels"], IGNORED)
            pads = getattr(self.data_collator, "tokenizer", self.tokenizer)
            for padded, row_labels in zip(batch["labels"], labels, strict=True):
                count = len(row_labels[kept])
                span = slice(count) if pads.padding_side == "right" else slice(len(padded) - count, None)
                padded[span] = row_labels[kept]
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def step(
        self,
        input_ids: list[torch.Tensor] | None = None,
        attention_mask: list[torch.Tensor] | None = None,
        labels: list[torch.Tensor] | None = None,
        texts: list[str] | None = None,
        texts_labels: list[str] | None = None,
    ) -> dict[str, float]:
        """One pass over the given rows in batches of `args.per_device_train_batch_size`, in random order.

        Args:
            input_ids: rows, each int64 [T].
            attention_mask: their masks; None: every token is seen.
            labels: their labels, with -100 ignored by the loss, for a decoder as long as the rows; None: the rows
                themselves.
            texts: in place of `input_ids`.
            texts_labels: in place of `labels`; an encoder-decoder's answers.

        Returns:
            `loss`, the mean of the batches, and `learning_rate` after them.

        Raises:
            ValueError: there are no rows, or no labels for an encoder-decoder, a list has entries of the wrong type or
                does not match the rows, or a row has nothing to learn. No weight has changed.
        """
        if texts is not None:
            if input_ids is not None:
                warn_user("both input_ids and texts are given: training uses the texts")
            tokens = self._tokenize(texts, "texts")
            input_ids, attention_mask = tokens["input_ids"], tokens["attention_mask"]
        if texts_labels is not None:
            # differs from v0.7: labels come from `texts_labels`, there from `texts`
            labels = self._tokenize(texts_labels, "texts_labels")["input_ids"]
        if input_ids is None:
            raise ValueError("step needs input_ids or texts")
        if labels is None and self.is_encoder_decoder:
            raise ValueError("an encoder-decoder needs labels or texts_labels: the answers to learn")
        _check_rows(input_ids, "input_ids" if texts is None else "texts")
        _check_rows(attention_mask, "attention_mask", input_ids, same_lengths=True)
        _check_rows(labels, "labels", input_ids, same_lengths=not self.is_encoder_decoder)
        batch = self.prepare_model_inputs(input_ids, attention_mask, labels)
        learned = batch["labels"] if self.is_encoder_decoder else batch["labels"][:, 1:]
        if idle := [row for row, counts in enumerate((learned != IGNORED).any(dim=1).tolist()) if not counts]:
            raise ValueError(f"rows {idle} have no label that counts in the loss: leave them out")

        self.model.train()
        losses = [
            self._update({name: tensor[rows] for name, tensor in batch.items()})
            for rows in DataLoader(
                range(len(input_ids)),  # type: ignore[arg-type]
                self.args.per_device_train_batch_size,
                shuffle=True,
            )
        ]
        if self.optimize_device_cache:
            core.free_device_cache()
        return {"loss": torch.stack(losses).mean().item(), "learning_rate": self._get_learning_rate()}

    def _kept(self) -> slice:
        """The tokens of a row that are kept."""
        if self.max_length is None:
            return slice(None)
        return slice(-self.max_length, None) if self.truncation_mode == "keep_end" else slice(self.max_length)

    def _tokenize(self, texts: list[str], name: str) -> dict[str, list[torch.Tensor]]:
        _check_texts(texts, name)
        tokens = tokens_of(self.tokenizer, list(texts), self.max_length)
        return {
            part: [torch.tensor(row, dtype=torch.long) for row in tokens[part]]
            for part in ("input_ids", "attention_mask")
        }

    def _update(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Forward and backward, with an optimizer step every `gradient_accumulation_steps` batches; the loss, 0-d."""
        with self.accelerator.accumulate(self.model):
            loss = self.compute_loss(self.model, batch)
            self.accelerator.backward(loss)
            # differs from v0.7: 0 means no clipping, as in transformers' trainers; there no weight moved
            if self.accelerator.sync_gradients and self.args.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            if self.accelerator.sync_gradients:
                self.lr_scheduler.step()
            self.optimizer.zero_grad()
        self.state.global_step += 1
        self._losses.append(loss.detach())
        self._maybe_log_save_evaluate()
        return loss.detach()

    @staticmethod
    def _step_safety_checker(
        input_ids: Any, attention_mask: Any, labels: Any, texts: Any, texts_labels: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        """What a subclass with a `step` of its own calls in release 0.7: the arguments of `step`, checked."""
        if texts is None:
            _check_rows(input_ids, "input_ids")
            _check_rows(attention_mask, "attention_mask", input_ids)
            _check_rows(labels, "labels", input_ids)
        else:
            _check_texts(texts, "texts")
            if texts_labels is not None:
                _check_texts(texts_labels, "texts_labels")
        return input_ids, attention_mask, labels, texts, texts_labels

    def _maybe_log_save_evaluate(self) -> None:
        """Called after each batch; the log and the evaluation that are due."""
        if (
            self.args.eval_steps
            and self.eval_dataset is not None
            and self.state.global_step % self.args.eval_steps == 0
        ):
            self.evaluate(self.eval_dataset)
            self.model.train()
        if self.args.logging_steps and self.state.global_step % self.args.logging_steps == 0:
            loss = self.accelerator.reduce(torch.stack(self._losses).mean(), "mean").item()
            self._losses.clear()
            self.log({"loss": loss, "learning_rate": self._get_learning_rate()})


def _check_texts(texts: Any, name: str) -> None:
    if not core.is_list(texts) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} must be a list of texts with at least one")


def _check_rows(rows: Any, name: str, beside: list[torch.Tensor] | None = None, same_lengths: bool = False) -> None:
    """Raise ValueError unless `rows` is None or a list of non-empty tensors [T], one per entry of `beside`, as long."""
    if rows is None:
        return
    if not core.is_list(rows) or not rows:
        raise ValueError(f"{name} must be a list of tensors with at least one, not {rows!r:.80}")
    if beside is not None and len(rows) != len(beside):
        raise ValueError(f"{name} has {len(rows)} rows for {len(beside)} texts")
    for index, row in enumerate(rows):
        if not isinstance(row, torch.Tensor):
            raise ValueError(f"{name}[{index}] must be a tensor, not {type(row).__name__}")
        if row.dim() != 1 or len(row) == 0:
            raise ValueError(f"{name}[{index}] must be [T] with at least one token, not {list(row.shape)}")
        if same_lengths and beside is not None and len(row) != len(beside[index]):
            raise ValueError(f"{name}[{index}] has {len(row)} tokens, its text has {len(beside[index])}")
