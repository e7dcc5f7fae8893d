"""`LanguageParts`: what a trainer of a language model is made of. Each part is made on first use, so that the methods
work on an object whose constructor was a subclass's own, written for release 0.7, and set what that release's set."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from transformers import DataCollatorForLanguageModeling

from trl_step.models.adapters import trained_base_parameters
from trl_step.models.critic import wrappers_of
from trl_step.models.inner_model import plain_model
from trl_step.models.notices import warn_user
from trl_step.models.probes import change_by_length, require_causal, require_precision
from trl_step.models.shortcuts.activations import fuse_activations
from trl_step.models.shortcuts.shared_prompts import RowSupport
from trl_step.trainer.batches.checks import Vocabulary
from trl_step.trainer.batches.layout import Layout, make_layout
from trl_step.trainer.batches.lengths import LengthLimits
from trl_step.trainer.engine.forward import TokenForward
from trl_step.trainer.engine.memory_budget import MemoryBudget
from trl_step.trainer.processes.accelerate_state import detach, own_accumulation
from trl_step.trainer.sampling_trainer import SamplingTrainer
from trl_step.trainer.settings.changes import Changes
from trl_step.trainer.updates.deepspeed import uses_deepspeed
from trl_step.trainer.updates.optimizers import make_updater
from trl_step.trainer.updates.updater import Updater
from trl_step.trainer.updates.what_trains import AtStart


class LanguageParts(SamplingTrainer):
    """Layout, forward passes, memory, lengths and updates of a trainer of a language model."""

    ref_model: Any
    optimizer: Any
    lr_scheduler: Any
    data_collator: Any
    is_peft_model: bool

    @property
    def model_params(self) -> list[torch.nn.Parameter]:
        """The parameters of the policy that train."""
        return self._model_params

    @model_params.setter
    def model_params(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        # a constructor of release 0.7 sets an iterator, of which nothing is left after the first clipping
        self._model_params = list(parameters)

    @cached_property
    def _reference_is_adapter(self) -> bool:
        return self.is_peft_model and self.ref_model is None

    @property
    def _reference(self) -> Any:
        return self.model if self._reference_is_adapter else self.ref_model

    @property
    def _models(self) -> list[Any]:
        """Policy and, if it is another model, reference, without what accelerate put around them."""
        unwrap = self.accelerator.unwrap_model
        return [unwrap(model) for model in (self.model, self.ref_model) if model is not None]

    @cached_property
    def _layout(self) -> Layout:  # type: ignore[override]  # it may be assigned
        vocabulary = Vocabulary.of(*self._models).size
        return make_layout(self.config, self.tokenizer, self.is_encoder_decoder, vocabulary)

    @cached_property
    def _length_limits(self) -> LengthLimits:
        parts = [part for model in self._models for part in wrappers_of(model)]
        return LengthLimits(parts, self.is_encoder_decoder, self._layout.fixed_length)

    @cached_property
    def _budget(self) -> MemoryBudget:
        return MemoryBudget(self.config.forward_tokens)

    @cached_property
    def _forward(self) -> TokenForward:
        """How the models are asked about batches; what is wrong with one is found here."""
        forward = TokenForward(self.accelerator.unwrap_model, self._layout, self.config.temperature)
        for model in self._models:
            require_precision(model.pretrained_model)
            require_causal(model.pretrained_model)
            self._consider_length(model.pretrained_model)
            fuse_activations(model)
            forward.register(model)
        return forward

    @cached_property
    def _rows(self) -> RowSupport:
        """What samples run in a row for: the settings ask for it, and policy and reference support it.

        A CPU, whose attention has to gather the parts of a row, pads unless it is asked not to.
        """
        config = self.config
        padding_free = self.accelerator.device.type == "cuda" if config.padding_free is None else config.padding_free
        wanted = RowSupport(
            prompts_once=config.share_prompts and not config.exact_v07,
            no_padding=padding_free and not config.exact_v07 and not config.pad_for_acceleration,
        )
        if not any(wanted):
            return wanted
        supported = [(model, self._forward.row_support(model)) for model in self._models]
        unable = [model for model, support in supported if not support.no_padding]
        if unable and wanted.no_padding and config.padding_free:
            warn_user(
                f"padding_free=True has no effect: {type(plain_model(unable[0].pretrained_model)).__name__} is an "
                "encoder-decoder model, or says something else about samples in one row, or its attention is neither "
                "sdpa nor flash attention, or its layers are placed on several devices; samples are padded"
            )
        return RowSupport.of_all((wanted, *(support for _, support in supported)))

    @cached_property
    def _custom_collator(self) -> bool:
        return type(self.data_collator) is not DataCollatorForLanguageModeling

    @cached_property
    def _at_start(self) -> AtStart:
        return AtStart.of(self.model)

    @cached_property
    def _changes(self) -> Changes:
        return Changes(self.config)

    @cached_property
    def _updater(self) -> Updater:
        if not uses_deepspeed(self.accelerator):
            # the state that an `Accelerator` of a subclass's own shares with all loops of the process
            own_accumulation(self.accelerator, self.accelerator.gradient_accumulation_steps)
            detach(self.accelerator, self.optimizer, self.lr_scheduler)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return make_updater(self._processes, self.model, self.optimizer, parameters, self.config)

    @property
    def _base_of_reference(self) -> dict[str, torch.nn.Parameter]:
        """What trains of the base model of an adapter, by name, if that base model is the reference."""
        if not self._reference_is_adapter or self.config.exact_v07:  # the reference of release 0.7 moved with it
            return {}
        return trained_base_parameters(self.accelerator.unwrap_model(self.model).pretrained_model)

    def _take_thawed(self, thawed: dict[str, torch.nn.Parameter], held: set[int]) -> None:
        """What was thawed since the trainer was built counts from now on as what trained then; `held`: the `id` of each
        parameter of the optimizer."""
        if not thawed or self._updater.settled:
            return
        # the gradients of what the optimizer does not hold are dropped, but not where they count in the norm
        joined = [p for p in thawed.values() if id(p) in held or not self.config.exact_v07]
        self._updater.add(joined)
        known = {id(parameter) for parameter in self.model_params}
        self.model_params = [*self.model_params, *(p for p in joined if id(p) in held - known)]

    def _consider_length(self, model: Any) -> None:
        """Samples of one length go together if the number of columns changes what `model` says about a token."""
        change = change_by_length(model)
        if change is None:
            return
        # differs from v0.7: log-probs of such a model depended on the longest sample of the mini-batch
        self._budget.one_length = not self.config.exact_v07
        warn_user(
            f"{type(plain_model(model)).__name__} changes the logits of a token by {change:.2g} if one more token "
            "follows, whichever it is. step runs samples of one length together, so that padding changes nothing; but "
            "generate, which writes token by token, samples from another distribution than the one that is trained. "
            "Take another model"
        )
