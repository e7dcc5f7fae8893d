"""The reference of a `DPOTrainer`: a separate model, or the policy with another adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from trl_step.models.adapters import (
    active_adapter,
    freeze_reference,
    is_fresh,
    replaced_values,
    trained_base_parameters,
    without_adapter,
)
from trl_step.models.inner_model import is_peft_model
from trl_step.models.notices import warn_user
from trl_step.models.reference import create_reference_model
from trl_step.models.sharding import is_sharded
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.models.utils import prepare_deepspeed
from trl_step.private_names import forget_model
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
    _resting: Any = None
    """The reference whose log-probs are precomputed, in the host's memory: for rows that come later."""
    _resting_is_prepared = False
    _first_values: Mapping[torch.nn.Parameter, torch.Tensor] = MappingProxyType({})
    """Base weights that train beside an adapter, as they were: the reference has them too."""

    def __init__(self, tokenizer: Any, reference: Any, **arguments: Any) -> None:
        self._named_adapter = self.ref_adapter_name
        self._explicit_reference = reference if arguments.get("model") is None else None
        self.ref_model = reference
        super().__init__(tokenizer, **arguments)
        if self.ref_model is not None:
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)

    def _prepare_deepspeed(self, model: Any) -> Any:
        """What subclasses of release 0.7 call for a reference of their own; see `prepare_deepspeed`."""
        return prepare_deepspeed(model, self.accelerator)

    def call_model_init(self, trial: Any = None) -> Any:
        """As in `TextTrainer`; the reference is the model as it is built, unless `ref_model` is given."""
        model = super().call_model_init(trial)
        if self._explicit_reference is not None:
            _check_separate(model, self._explicit_reference)
            return model
        self.ref_adapter_name = self._named_adapter
        before, self.is_peft_model = self.ref_model, is_peft_model(model)
        self.ref_model = self._reference_of(model, None)
        if before is not None and self.ref_model is not None:  # built anew, before a training
            forget_model(self.accelerator, before)
            self.ref_model = self.accelerator.prepare_model(self.ref_model, evaluation_mode=True)
        return model

    def _reference_of(self, model: Any, ref_model: Any) -> Any:
        """A separate reference model, or None if it is the policy with another adapter, or precomputed.

        Raises:
            ValueError: `ref_model` has weights of `model` that are trained.
        """
        if ref_model is not None:
            _check_separate(model, ref_model)
            return ref_model.eval()
        if self.is_peft_model:
            # differs from v0.7: the reference moved with them
            self._first_values = {p: p.detach().clone() for p in trained_base_parameters(model).values()}
            with self._autocast(model.device):
                fresh = self.ref_adapter_name is not None or is_fresh(model)
            if not fresh:
                # differs from v0.7: the reference of a trained adapter is that adapter, not the base model without it
                self.ref_adapter_name = freeze_reference(model)
            return None
        if model is None:
            return None
        if self.precompute_ref_log_probs:
            # sharded weights cannot be copied: their log-probs are known only until the first update
            self._resting_is_prepared = False
            self._resting = None if is_sharded(model) else create_reference_model(model).to("cpu")
            return None
        return create_reference_model(model)

    @contextmanager
    def null_ref_context(self) -> Iterator[None]:
        """Inside, `self.model` is the reference: another adapter, or none, is active.

        Raises:
            ValueError: base weights train beside the adapter, and are sharded.
        """
        model = self.accelerator.unwrap_model(self.model)
        if self._first_values and is_sharded(model):
            raise ValueError(
                f"{len(self._first_values)} parameters of the base model train beside the adapter, and sharded weights "
                'cannot be kept twice: pass a ref_model, or train the adapter alone (bias="none")'
            )
        switched: AbstractContextManager = nullcontext()
        if self.ref_adapter_name is not None:
            switched = active_adapter(model, self.ref_adapter_name)
        elif self.is_peft_model:
            switched = without_adapter(model)
        with switched, eval_mode(model), replaced_values(self._first_values):
            yield

    @contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference, ready for a forward pass without a gradient.

        Raises:
            ValueError: it was to be precomputed, could not be kept, and the weights have changed.
        """
        if self.ref_model is None and self._resting is not None:
            with torch.no_grad(), self._awake() as reference:
                yield reference
            return
        if self.ref_model is None and not self.is_peft_model and self.state.global_step > 0:
            raise ValueError(
                "with sharded weights the precomputed reference is gone after the first update: give the trainer all "
                "rows that will be evaluated, as eval_dataset"
            )
        with torch.no_grad(), self.null_ref_context() if self.ref_model is None else nullcontext():
            yield self.model if self.ref_model is None else self.ref_model

    @contextmanager
    def _awake(self) -> Iterator[Any]:
        """Inside, the reference that is kept in the host's memory is on the device."""
        if not self._resting_is_prepared:
            self._resting = self.accelerator.prepare_model(self._resting, evaluation_mode=True)
            self._resting_is_prepared = True
        reference: Any = self._resting
        try:
            yield reference.to(self.accelerator.device)
        finally:
            reference.to("cpu")

    def _autocast(self, device: torch.device | None = None) -> AbstractContextManager:
        """For passes outside the trainer's own autocast, if an adapter was cast to bfloat16; None: on its device."""
        if not self._peft_has_been_casted_to_bf16:
            return nullcontext()
        return torch.autocast((device or self.accelerator.device).type, torch.bfloat16)

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
                eval_dataset = self._with_reference(
                    self._with_tokens(eval_dataset), self.args.per_device_eval_batch_size
                )
        return super().get_eval_dataloader(eval_dataset)

    def _with_reference(self, dataset: Any, batch_size: int) -> Any:
        """`dataset` with the two columns `REFERENCE_COLUMNS`; one that has them, or None, is returned unchanged.

        So is a stream: the reference is asked about each batch when it comes.
        """
        return each(dataset, lambda one: self._with_columns(one, batch_size))

    def _with_columns(self, dataset: Any, batch_size: int) -> Any:
        if isinstance(dataset, IterableDataset):
            warn_user(
                "precompute_ref_log_probs=True has no effect on a stream: the reference is asked about each batch when "
                "it comes. Give a Dataset to compute its log-probs before training"
            )
            return dataset
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


def _check_separate(model: Any, ref_model: Any) -> None:
    """Raise ValueError if training `model` would move `ref_model`."""
    trained = {} if model is None else {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    shared = [trained[id(parameter)] for parameter in ref_model.parameters() if id(parameter) in trained]
    if ref_model is model or shared:
        what = "is model" if ref_model is model else f"has trained weights of model ({shared[0]}, for example)"
        raise ValueError(
            f"ref_model {what}: the reference would move with the policy and nothing would be learned. Leave ref_model "
            "out for a copy of model as it is now, or load it a second time"
        )
