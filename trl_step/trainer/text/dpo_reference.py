"""The reference of a `DPOTrainer`: a separate model, or the policy with another adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from trl_step.models.adapters import active_adapter, freeze_reference, is_fresh, without_adapter
from trl_step.models.reference import create_reference_model
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.trainer.text.text_trainer import TextTrainer, each

REFERENCE_COLUMNS = ("reference_chosen_logps", "reference_rejected_logps")


class ReferenceTrainer(TextTrainer):
    """A `TextTrainer` with a reference, whose log-probs are computed with each batch or once before training.

    A subclass sets the attributes below, and has `concatenated_forward`, as `DPOTrainer` does.

    Args:
        tokenizer: becomes `processing_class`.
        reference: the result of `_reference_of`.
        arguments: the other arguments of `transformers.Trainer`.
    """

    train_dataset: Any
    eval_dataset: Any
    ref_adapter_name: str | None
    is_peft_model: bool
    precompute_ref_log_probs: bool
    _peft_has_been_casted_to_bf16: bool

    def __init__(self, tokenizer: Any, reference: Any, **arguments: Any) -> None:
        self.ref_model = reference
        super().__init__(tokenizer, **arguments)
        if reference is not None:
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def _reference_of(self, model: Any, ref_model: Any) -> Any:
        """A separate reference model, or None if it is the policy with another adapter, or precomputed."""
        if ref_model is not None:
            return ref_model.eval()
        if self.is_peft_model:
            if self.ref_adapter_name is None and not is_fresh(model):
                # differs from v0.7: the reference of a trained adapter is that adapter, not the base model without it
                self.ref_adapter_name = freeze_reference(model)
            return None
        if model is None or self.precompute_ref_log_probs:
            return None
        return create_reference_model(model)

    @contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Inside, `self.model` is the reference: another adapter, or none, is active."""
        model = self.accelerator.unwrap_model(self.model)
        switched: AbstractContextManager = nullcontext()
        if self.ref_adapter_name is not None:
            switched = active_adapter(model, self.ref_adapter_name)
        elif self.is_peft_model:
            switched = without_adapter(model)
        with switched, eval_mode(model):
            yield

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference, ready for a forward pass without a gradient."""
        with torch.no_grad(), self.null_ref_context() if self.ref_model is None else nullcontext():
            yield self.model if self.ref_model is None else self.ref_model

    def _autocast(self) -> AbstractContextManager:
        """For passes outside the trainer's own autocast, if an adapter was cast to bfloat16."""
        device = self.accelerator.device.type
        return torch.autocast(device, torch.bfloat16) if self._peft_has_been_casted_to_bf16 else nullcontext()

    def compute_reference_log_probs(self, padded_batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probs of the chosen and of the rejected answers [B] in the reference."""
        with self._autocast(), self._reference() as reference:
            chosen, rejected, *_ = self.concatenated_forward(reference, padded_batch)
        return chosen, rejected

    def get_train_dataloader(self) -> DataLoader:
        """As in `transformers.Trainer`; first computes the reference's log-probs if they are to be precomputed."""
        if self.precompute_ref_log_probs:
            self.train_dataset = self._with_reference(self.train_dataset, self.args.per_device_train_batch_size)
            # differs from v0.7: those of the evaluation rows too, before any weight changes
            self.eval_dataset = self._with_reference(self.eval_dataset, self.args.per_device_eval_batch_size)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in `transformers.Trainer`, with the reference's log-probs if they are to be precomputed.

        Args:
            eval_dataset: rows, or the name of one of the trainer's; None: the trainer's.

        Raises:
            ValueError: there are no rows.
        """
        if eval_dataset is None and self.eval_dataset is None:
            raise ValueError("there is no eval_dataset: pass one here or to the trainer")
        if self.precompute_ref_log_probs:
            self.eval_dataset = self._with_reference(self.eval_dataset, self.args.per_device_eval_batch_size)
            if not isinstance(eval_dataset, str):
                eval_dataset = self._with_reference(eval_dataset, self.args.per_device_eval_batch_size)
        return super().get_eval_dataloader(eval_dataset)

    def _with_reference(self, dataset: Any, batch_size: int) -> Any:
        """`dataset` with the two columns `REFERENCE_COLUMNS`; one that has them, or None, is returned unchanged."""
        return each(dataset, lambda one: self._with_columns(one, batch_size))

    def _with_columns(self, dataset: Any, batch_size: int) -> Any:
        if set(REFERENCE_COLUMNS) <= set(dataset.column_names):
            return dataset
        loader = self.accelerator.prepare(DataLoader(dataset, batch_size, collate_fn=self.data_collator))
        computed = [
            self.accelerator.gather_for_metrics(self.compute_reference_log_probs(batch))
            for batch in tqdm(loader, desc="log-probs of the reference", disable=self.args.disable_tqdm)
        ]
        for name, column in zip(REFERENCE_COLUMNS, zip(*computed, strict=True), strict=True):
            dataset = dataset.add_column(name, torch.cat(column).float().cpu().tolist())
        return dataset
