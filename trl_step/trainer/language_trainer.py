"""`LanguageTrainer`: a `StepTrainer` whose policy is a language model, with a reference and a tokenizer.

It holds what does not depend on the algorithm: models and data on their devices, the checks of what is given to `step`,
forward passes, sampling, saving.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Optional, Union

import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from trl_step.algorithms.diagnosis.checkup import Checkup
from trl_step.algorithms.diagnosis.findings import Circumstances
from trl_step.core import PPODecorators
from trl_step.import_utils import is_hub_dataset
from trl_step.models import PreTrainedModelWrapper, create_reference_model
from trl_step.models.critic import PolicyWithCritic
from trl_step.models.inner_model import plain_model
from trl_step.models.modeling_language import PlainPolicy
from trl_step.models.notices import warn_user
from trl_step.models.sharding import is_sharded, whole_state_dict
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.sampling.options import all_eos_ids
from trl_step.trainer.batches.checks import NO_EXTRAS, Extras, StepInputs, Vocabulary, check_size, checked_for
from trl_step.trainer.batches.padding import Padded, padding_on_the_right
from trl_step.trainer.batches.rollout import Precomputed, Rollout
from trl_step.trainer.batches.scores import ScoresGiven
from trl_step.trainer.engine.engine import FusedEngine
from trl_step.trainer.engine.models import (
    Models,
    bring_flash_attention,
    check_reference,
    prepare,
    reference_context,
)
from trl_step.trainer.language.old_parts import OldParts
from trl_step.trainer.processes.accelerate_state import detach, own_accumulation
from trl_step.trainer.reports.cost import StepCost, StepFacts, cost_of
from trl_step.trainer.reports.hub import write_model_card
from trl_step.trainer.reports.watch import active_dropout, fingerprint_of, padded_by_hand, repeats_query
from trl_step.trainer.runs.data_loader import positioned
from trl_step.trainer.runs.identity import identity, settings_of
from trl_step.trainer.updates.deepspeed import uses_deepspeed
from trl_step.trainer.updates.optimizers import check_optimizer, held_by, make_optimizer
from trl_step.trainer.updates.what_trains import (
    cannot_join,
    changed_since,
    check_trained,
    stays_since,
    thawed_since,
)

if TYPE_CHECKING:
    import datasets

LOGGED_COLUMNS = frozenset(("label", "label_ids", "labels", "query", "response"))
"""Columns of a data set that the model may not read, but scripts, collators and logs do."""


class LanguageTrainer(OldParts):
    """Policy, reference, tokenizer and data of a trainer, and forward passes over queries and responses.

    Arguments: those of `PPOTrainer`, already checked.
    """

    _signature_columns: Optional[list[str]] = None
    _last_step: Optional[StepFacts] = None

    def __init__(
        self,
        config: Any,
        model: PreTrainedModelWrapper,
        ref_model: Optional[PreTrainedModelWrapper],
        tokenizer: PreTrainedTokenizerBase,
        dataset: Any,
        optimizer: Optional[torch.optim.Optimizer],
        data_collator: Optional[Callable],
        num_shared_layers: Optional[int],
        lr_scheduler: Any,
        training_data_collator: Optional[Callable],
        value_model: Any = None,
    ) -> None:
        self.is_encoder_decoder = getattr(model, "is_encoder_decoder", False)
        self.is_peft_model = getattr(model, "is_peft_model", False)
        config.is_encoder_decoder, config.is_peft_model = self.is_encoder_decoder, self.is_peft_model
        super().__init__(config)
        if num_shared_layers is not None and ref_model is not None:
            warn_user("num_shared_layers is ignored: a ref_model was given")
        self.tokenizer = tokenizer

        # policy and reference
        # differs from v0.7: a reference given with a PEFT model was ignored
        self._reference_is_adapter = self.is_peft_model and (ref_model is None or config.exact_v07)
        if ref_model is not None and not self._reference_is_adapter:
            check_reference(model, ref_model)
        if ref_model is None and not self.is_peft_model:
            ref_model = create_reference_model(model, num_shared_layers=num_shared_layers)
        self.optional_peft_ctx: Callable = nullcontext
        if self._reference_is_adapter:
            sharded = self.accelerator.is_fsdp2 or uses_deepspeed(self.accelerator)
            self.optional_peft_ctx = reference_context(model, config, sharded)
        policy: Any = model if value_model is None else PolicyWithCritic(model, value_model)
        if config.gradient_checkpointing:
            policy.gradient_checkpointing_enable()

        self.model: Any = policy
        self.ref_model: Any = ref_model

        # before anything is wrapped
        for known in self._models:
            bring_flash_attention(self.accelerator, known)
        _ = self._length_limits, self._forward, self._rows
        self.data_collator: Any = training_data_collator or DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self._custom_collator = training_data_collator is not None
        self.dataset = dataset
        dataloader = None if dataset is None else self.prepare_dataloader(dataset, data_collator)

        # everything on the device, and what makes the updates
        check_trained(model, config.needs_values)
        check_optimizer(optimizer, lr_scheduler, policy, config)
        optimizer = optimizer or make_optimizer(policy, config.learning_rate, config.value_learning_rate)
        prepared = prepare(
            self.accelerator, config, policy, ref_model, optimizer, dataloader, lr_scheduler, self._forward
        )
        self.model, self.ref_model = prepared.model, prepared.ref_model
        if prepared.offloaded is not None and not self._reference_is_adapter:
            self.optional_peft_ctx = prepared.offloaded.on_device
        self.optimizer: Any = prepared.optimizer
        self.lr_scheduler: Any = prepared.lr_scheduler
        self.model_params = prepared.parameters
        _ = self._at_start, self._changes, self._updater
        if not uses_deepspeed(self.accelerator):
            own_accumulation(self.accelerator, config.gradient_accumulation_steps)
        detach(self.accelerator, self.optimizer, self.lr_scheduler, prepared.dataloader)
        self.dataloader: Any = positioned(prepared.dataloader, self.accelerator.non_blocking)

    def _parts(self) -> dict[str, Any]:
        return {
            **super()._parts(),
            "policy": self.accelerator.unwrap_model(self.model),
            "optimizer": self.optimizer,
            "scheduler": self.lr_scheduler,
            "checkup": self._sampling.checkup,
            "loader": self.dataloader,
            "memory": self._budget,
        }

    def _identity(self) -> dict[str, Any]:
        parts = self._parts()
        return identity(
            processes=self._processes,
            settings=settings_of(self.config),
            policy=parts["policy"],
            reference=None if self.ref_model is None else self._models[1].pretrained_model,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            kl_controller=parts.get("kl_controller"),
            dataset=self.dataset,
            loader=self.dataloader,
            mixed_precision=self.accelerator.mixed_precision,
        )

    def prepare_dataloader(
        self, dataset: Union[torch.utils.data.Dataset, datasets.Dataset], data_collator: Optional[Callable] = None
    ) -> torch.utils.data.DataLoader:
        """A shuffling loader of whole batches of `config.batch_size`; unused columns are removed first.

        Raises:
            ValueError: the data set is smaller than one batch on each process.
        """
        check_size(dataset, self.config.batch_size, self.accelerator.num_processes)
        if is_hub_dataset(dataset):
            dataset = self._remove_unused_columns(dataset)
        return torch.utils.data.DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
        )

    def _remove_unused_columns(self, dataset: Any, description: Optional[str] = None) -> Any:
        """A data set without the columns that neither the model nor scripts read, if the settings say so."""
        if not self.config.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        used = self._signature_columns or ()
        return dataset.remove_columns([column for column in dataset.column_names if column not in used])

    def _set_signature_columns_if_needed(self) -> None:
        """Fill `_signature_columns`, the columns that stay."""
        if self._signature_columns is None:
            policy = self.accelerator.unwrap_model(self.model)
            forwards = (policy.forward, plain_model(policy.pretrained_model).forward)
            self._signature_columns = sorted(
                LOGGED_COLUMNS.union(*(inspect.signature(forward).parameters for forward in forwards))
            )

    # --- batches -------------------------------------------------------------------------------------------------

    def _checked(
        self,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        scores: ScoresGiven,
        response_masks: Optional[list[torch.Tensor]],
        precomputed: Precomputed,
        extras: Extras = NO_EXTRAS,
    ) -> StepInputs:
        """The inputs of `step` in one form and on the device; all processes raise if one of them finds an error."""
        policy = self.accelerator.unwrap_model(self.model)
        error = changed_since(self.model, self._at_start)
        thawed, held = thawed_since(policy, self._at_start), held_by(self.optimizer) or set()
        error = error or stays_since(policy, self._at_start, thawed, held, self.config.needs_values)
        of_reference = self._base_of_reference if thawed else {}
        error = error or cannot_join(thawed, held, of_reference, self._updater.settled)
        checked: Any = None
        try:
            self._changes.check(self.config)
            if not torch.is_grad_enabled():
                raise ValueError("step is inside of torch.no_grad() or torch.inference_mode(): call it outside of them")
            if self.ref_model is not None and not self._reference_is_adapter:
                check_reference(*self._models)
            checked = checked_for(
                queries,
                responses,
                scores,
                response_masks,
                precomputed,
                extras,
                vocabulary=Vocabulary.of(policy, self.ref_model),
                device=self.current_device,
                limits=self._length_limits,
                is_encoder_decoder=self.is_encoder_decoder,
                exact_v07=self.config.exact_v07,
                decoder_start=getattr(policy.config, "decoder_start_token_id", None),
            )
        except ValueError as found:
            error = error or found
        self._processes.raise_together(error)
        self._take_thawed(thawed, held)
        return checked  # type: ignore[no-any-return]

    def _batch(self, given: StepInputs) -> Rollout:
        """Lists become a batch, once."""
        inputs = self.prepare_model_inputs(given.queries, given.responses)
        rollout = self._layout.batch(given.queries, given.responses, inputs, given.response_masks)
        rollout = self._layout.packable(rollout, *self._rows)
        return self._layout.with_numbers(rollout, given.scores, given.precomputed, given.advantages)

    def prepare_model_inputs(
        self, queries: list[torch.Tensor], responses: list[torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Padded inputs of the model, each [B, S] int64.

        `input_ids` and `attention_mask` of query and response joined; for an encoder-decoder model of the queries,
        with `decoder_input_ids` and `decoder_attention_mask` of the responses.
        """
        return self._layout.model_inputs(queries, responses, self._collate if self._custom_collator else None)

    def _collate(self, sequences: Sequence[torch.Tensor]) -> Padded:
        batch = self.data_collator([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in sequences])
        padded = Padded(*(batch[key].to(self.current_device) for key in Padded._fields))
        if self.tokenizer.pad_token_id != self._layout.pad_token_id:  # the model may have no embedding for it
            filled = padded.input_ids.where(padded.attention_mask.bool(), self._layout.pad_token_id)
            padded = padded._replace(input_ids=filled)
        # differs from v0.7: padding on the left moved the positions of models that count them, such as GPT-2 and BART
        return padded if self.config.exact_v07 else padding_on_the_right(*padded)

    # --- forward passes ------------------------------------------------------------------------------------------

    def _fused_engine(self) -> FusedEngine:
        unwrap, sharded = self.accelerator.unwrap_model, self._updater.sharded
        models = Models(self.model, self._reference, self.optional_peft_ctx, unwrap, sharded)
        return FusedEngine(models, self._forward, self._budget, self.accelerator.autocast, self.config.mini_batch_size)

    @PPODecorators.empty_device_cache()
    def batched_forward_pass(
        self,
        model: PreTrainedModelWrapper,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        model_inputs: Mapping[str, torch.Tensor],
        return_logits: bool = False,
        response_masks: Optional[list[torch.Tensor]] = None,
    ) -> tuple[torch.Tensor, Optional[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Run the model over padded inputs in mini-batches, dropout off.

        Args:
            queries, responses: what `model_inputs` was made of; their lengths place the response
            model_inputs: as `prepare_model_inputs` makes them, each [B, S]
            return_logits: keep the logits and fill every position; else only the counted ones are computed
            response_masks: each [R_i]

        Returns:
            log-probs [B, T = S - 1] float32 of the next token; logits [B, T, V] or None; values [B, T]; and the mask
            [B, T] int64 of the positions that predict a counted response token.
        """
        batch, engine = self._layout.batch(queries, responses, model_inputs, response_masks), self._fused_engine()
        with self.model_lock, eval_mode(model), self.accelerator.autocast():
            if return_logits or torch.is_grad_enabled():
                left_padded, size = batch.positions.left_padded, engine.size
                logprobs, logits, values = self._forward.everything(model, model_inputs, left_padded, size)
                return logprobs, logits if return_logits else None, values, batch.mask
            logprobs, values = engine.sweep(model, batch)
            return logprobs, None, values, batch.mask

    @PPODecorators.empty_device_cache()
    def values_after(self, queries: list[torch.Tensor], responses: list[torch.Tensor]) -> torch.Tensor:
        """The value of the state after the last token of each sample, by value head or critic, dropout off.

        `step` takes it for the episodes that `truncated` names; every process calls it.

        Args:
            queries, responses: token ids, each [Q_i] and [R_i] int64; none at all is allowed

        Returns:
            [B] float32

        Raises:
            ValueError: the policy has no values.
        """
        if not queries:  # sharded weights are gathered by all processes together, so this one takes part
            queries = responses = [torch.full((1,), self._layout.pad_token_id, device=self.current_device)]
            return self.values_after(queries, responses)[:0]
        batch = self._layout.batch(queries, responses, self.prepare_model_inputs(queries, responses))
        with self.model_lock:
            return self._fused_engine().values_after(batch)

    # --- reports -------------------------------------------------------------------------------------------------

    @property
    def _end_tokens(self) -> tuple[int, ...]:
        """Ids that end a response: the tokenizer's and those of the model's generation config."""
        return tuple(all_eos_ids(self.accelerator.unwrap_model(self.model), [self.tokenizer.eos_token_id], {}))

    def _diagnose(self, stats: dict[str, Any], given: StepInputs) -> None:
        """Look for what is wrong with the run, and warn of it."""
        ragged = len({len(query) for query in given.queries}) > 1
        seen = Circumstances(
            dropout=active_dropout(self.accelerator.unwrap_model(self.model).pretrained_model),
            pads_right=ragged and not self.is_encoder_decoder and self.tokenizer.padding_side == "right",
            given_logprobs=given.precomputed.old_logprobs is not None,
            given_masks=given.response_masks is not None,
            end_tokens=self._end_tokens,
            lam=self._lam_of_scores(given),
            repeats_query=not self.is_encoder_decoder and repeats_query(given.queries, given.responses),
            batch=fingerprint_of(given.queries, given.responses),
        )
        pad = self.tokenizer.pad_token_id
        if pad is not None and not seen.given_masks:
            special = pad in (*seen.end_tokens, self.tokenizer.bos_token_id)
            seen = seen._replace(padded=padded_by_hand(given.queries, given.responses, pad, seen.end_tokens, special))
        self._sampling.saw_step(stats, seen, self._processes.is_main)

    def _lam_of_scores(self, given: StepInputs) -> Optional[float]:
        """See `Circumstances.lam`."""
        config = self.config
        through_values = config.needs_values and given.advantages is None and config.gae_level == "token"
        adaptive = config.length_adaptive_alpha is not None
        one_number = isinstance(given.scores, torch.Tensor)
        return config.lam if through_values and one_number and not adaptive else None

    def step_cost(self) -> StepCost:
        """The FLOPs and seconds of the last step, and how far from the machine's limit it was.

        The machine's matrix rate is measured at the first call (a fraction of a second) and then remembered.

        Raises:
            ValueError: no step was made yet.
        """
        if self._last_step is None:
            raise ValueError("step_cost reports the last step, but there was none; call step first")
        return cost_of(self._last_step, self.accelerator.unwrap_model(self.model), self.config.mini_batch_size)

    @property
    def checkup(self) -> Checkup:
        """What was found to be wrong in the steps so far; `trl_step.extras.doctor` reads it."""
        return self._sampling.checkup

    # --- saving --------------------------------------------------------------------------------------------------

    def create_model_card(self, path: str, model_name: Optional[str] = "TRL Model") -> None:
        """Write README.md into `path`: what the model is and how to load it. Needs no network."""
        policy = self.accelerator.unwrap_model(self.model)
        if isinstance(policy, PolicyWithCritic):
            values: Any = "critic"
        else:
            values = "none" if isinstance(policy, PlainPolicy) else "head"
        write_model_card(path, model_name or "TRL Model", self.config, values)

    def _save_pretrained(self, save_directory: str) -> None:
        policy, state = self.accelerator.unwrap_model(self.model), None
        if is_sharded(policy):
            state = whole_state_dict(policy, keep=self._processes.is_main)
        if not self._processes.is_main:
            return
        policy.save_pretrained(save_directory, state_dict=state)
        self.tokenizer.save_pretrained(save_directory)
        self.create_model_card(save_directory)
