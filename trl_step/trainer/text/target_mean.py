"""Losses of language modeling that are means over the predicted tokens, for every family of models."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from trl_step.models.inner_model import plain_model
from trl_step.trainer.text.text_trainer import TextTrainer

IGNORED = -100


class TargetMeanTrainer(TextTrainer):
    """A `TextTrainer` whose losses are means over the labels that a model predicts.

    The first label of a row is predicted from nothing: a decoder's loss leaves it out, so it does not count in the
    divisor either. transformers 5 counts it where a model's `loss_type` is None (GPT-2, OpenAI GPT, CTRL, Reformer,
    BERT decoders), and divides by too much. The mean is taken over all accumulated batches of an update, and over all
    batches of an evaluation.

    Args:
        tokenizer: becomes `processing_class`.
        arguments: the other arguments of `transformers.Trainer`.
    """

    _evaluated: list[torch.Tensor] | None = None
    """Sums and counts of the batches of an evaluation."""
    _takes_keywords: bool | None = None
    """What `transformers.Trainer` finds out for `model_accepts_loss_kwargs`."""
    _counts: bool | None = None
    """What was set for it later."""

    # made on first use: a subclass of release 0.7 may have a constructor that never calls this class's

    @property
    def _base(self) -> Any:
        return plain_model(self.accelerator.unwrap_model(self.model))

    @cached_property
    def _is_decoder(self) -> bool:
        return not getattr(self._base.config, "is_encoder_decoder", False)

    @cached_property
    def _divides(self) -> bool:
        """Whether the model's own loss divides by the count that it is given."""
        return bool(self._takes_keywords) and _divides_by_count(self._base)

    @cached_property
    def _own_loss(self) -> bool:
        # a model from elsewhere may have a loss with other terms, which stays
        return self._is_decoder and not self._divides and type(self._base).__module__.startswith("transformers.")

    @property
    def model_accepts_loss_kwargs(self) -> bool:
        """Whether a batch is counted before its loss is computed."""
        return self._divides or self._own_loss if self._counts is None else self._counts

    @model_accepts_loss_kwargs.setter
    def model_accepts_loss_kwargs(self, takes_keywords: bool) -> None:
        if self._takes_keywords is None:
            self._takes_keywords = takes_keywords
        else:
            self._counts = takes_keywords

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """The number of predicted labels, at least 1: a batch without any has the loss 0, not NaN."""
        count = self._targets(batch_samples, device)
        return count.clamp(min=1) if isinstance(count, torch.Tensor) else count

    def _targets(self, batches: list, device: torch.device) -> torch.Tensor | int | None:
        if self._is_decoder:
            batches = [_without_first_label(batch) for batch in batches]
        return super()._get_num_items_in_batch(batches, device)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The sum over the predicted labels, divided by `num_items_in_batch`, or by their number if it is None.

        It is the model's own loss if the model divides by `num_items_in_batch`. The others take a mean of each batch,
        and some (BartForCausalLM, XLMWithLMHeadModel) compare the logits of a token with that token.
        """
        if not self._own_loss or "labels" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        labels = inputs["labels"]
        # virtual tokens of prompt tuning precede the text
        logits = outputs["logits"][:, -labels.shape[1] :]
        if self.label_smoother is not None:
            loss = self.label_smoother(
                {"logits": logits}, labels, shift_labels=True, num_items_in_batch=num_items_in_batch
            )
        else:
            loss = _loss_of_targets(logits, labels, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is that of all processes, whose mean is taken
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """As in `transformers.Trainer`."""
        step = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        count = self._targets([inputs], self.args.device) if self._evaluated is not None else None
        if step[0] is not None and isinstance(count, torch.Tensor):
            counted = count.float().mean()
            self._evaluated.append(torch.stack((step[0].float() * counted, counted)))  # type: ignore[union-attr]
        return step

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As in `transformers.Trainer`; the loss is the mean over the predicted labels of all batches."""
        sums: list[torch.Tensor] = []
        self._evaluated = sums
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            self._evaluated = None
        if sums:
            loss, count = self.accelerator.reduce(torch.stack(sums).sum(dim=0), "sum").tolist()
            # differs from v0.7: there the mean over rows of the means of their batches
            output.metrics[f"{metric_key_prefix}_loss"] = loss / max(count, 1)
        return output


def _divides_by_count(model: torch.nn.Module) -> bool:
    """Whether the model's forward hands its keywords to transformers' loss function, or knows the count itself."""
    code = inspect.unwrap(type(model).forward).__code__
    return "loss_function" in code.co_names or "num_items_in_batch" in (*code.co_varnames, *code.co_consts)


def _without_first_label(batch: Any) -> Any:
    """The batch with the first label of each row ignored; labels that are shifted already keep all."""
    if "labels" not in batch or "shift_labels" in batch:
        return batch
    return {**batch, "labels": F.pad(batch["labels"][..., 1:], (1, 0), value=IGNORED)}


def _loss_of_targets(logits: torch.Tensor, labels: torch.Tensor, count: Any) -> torch.Tensor:
    """Cross entropy of logits [B, T, V] and the labels [B, T] one position later, summed and divided by `count`."""
    predicted, targets = logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten().to(logits.device)
    total = F.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="sum")
    return total / ((targets != IGNORED).sum().clamp(min=1) if count is None else count)
