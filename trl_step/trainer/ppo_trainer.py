"""`PPOTrainer`: the step API. `PPOTrainer.step` reads like the algorithm.

Here stand the constructor, the step and the methods that users override. The rest, in this folder:

- `setup.py`: what the constructor builds. `generation.py`: `generate`
- `checks.py`, `scores.py`, `layout.py`: inputs are checked, shaped and padded (stages 1 and 2)
- `rolling.py`, `sweeps.py`, `forward.py`: what policy and reference say about the responses (stage 3)
- `epochs.py`, `update.py`: mini-batches, their losses, the optimizer's steps (stage 5)
- `reporting.py`, `trackers.py`: logs, callbacks, cost. `saving.py`, `run_state.py`, `hub.py`: what is written

The maths is in `trl_step/ppo/`.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial, wraps
from typing import Any, Optional, Union

import datasets
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from trl_step.algorithms.advantages.gae import advantages_and_returns
from trl_step.algorithms.kl import kl_penalty
from trl_step.algorithms.objective import mean_over, minibatch_statistics, policy_losses, value_losses
from trl_step.algorithms.rewards import RunningMoments, sample_totals, token_rewards
from trl_step.algorithms.stats import LOGGED_ARRAYS, readable, rollout_statistics
from trl_step.core import PPODecorators, entropy_from_logits, set_seed
from trl_step.models import PreTrainedModelWrapper, create_reference_model
from trl_step.models.shortcuts.activations import fuse_activations
from trl_step.models.shortcuts.modes import eval_mode
from trl_step.trainer.base import BaseTrainer
from trl_step.trainer.batches.checks import check_arguments, checked_for
from trl_step.trainer.batches.lengths import LengthLimits
from trl_step.trainer.batches.padding import Padded, padding_behind
from trl_step.trainer.batches.rollout import RolledForward, Rollout
from trl_step.trainer.batches.scores import shaped
from trl_step.trainer.engine.evaluate import Given, roll_forward
from trl_step.trainer.engine.forward import TokenForward
from trl_step.trainer.engine.memory_budget import ForwardSize
from trl_step.trainer.engine.sweeps import plain_sweep, sweep
from trl_step.trainer.generation import GenerationMixin
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.reporting import ReportingMixin
from trl_step.trainer.reports import hub
from trl_step.trainer.reports.callbacks import StepReport, configured_callbacks
from trl_step.trainer.reports.cost import StepFacts
from trl_step.trainer.reports.watch import SamplingWatch, circumstances, end_tokens
from trl_step.trainer.runs.autosave import AutoSave
from trl_step.trainer.runs.counters import BestScore, Counters
from trl_step.trainer.runs.identity import identity
from trl_step.trainer.runs.state import RunState
from trl_step.trainer.saving import SavingMixin
from trl_step.trainer.setup import (
    make_kl_controller,
    make_layout,
    make_optimizer,
    make_updater,
    prepare,
    reference_context,
    start_accelerator,
    without_unused_columns,
)
from trl_step.trainer.updates.epochs import run_epochs


def _autosaved(step: Callable) -> Callable:
    """`step` with `self._autosave` around it."""

    @wraps(step)
    def saving(self: PPOTrainer, *args: Any, **kwargs: Any) -> Any:
        with self._autosave:
            return step(self, *args, **kwargs)

    return saving


class PPOTrainer(GenerationMixin, ReportingMixin, SavingMixin, BaseTrainer):
    """Tunes a language model with PPO from queries, responses and scores that your own loop makes.

    ```python
    trainer = PPOTrainer(PPOConfig(batch_size=16, mini_batch_size=16), model, ref_model, tokenizer)
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=32)
    stats = trainer.step(queries, responses, scores)
    ```

    Methods that a subclass may override, with the arguments and shapes of release 0.7: `batched_forward_pass`,
    `compute_rewards`, `compute_advantages`, `loss`, `train_minibatch`, `prepare_model_inputs`, `record_step_stats`,
    `log_stats`, `generate`, `prepare_dataloader`, `_early_stop`, `_kl_penalty`. Full logits are built for them when,
    and only when, a method that takes logits is overridden.
    """

    def __init__(
        self,
        config: Optional[PPOConfig] = None,
        model: Optional[PreTrainedModelWrapper] = None,
        ref_model: Optional[PreTrainedModelWrapper] = None,
        tokenizer: Optional[PreTrainedTokenizerBase] = None,
        dataset: Optional[Union[torch.utils.data.Dataset, datasets.Dataset]] = None,
        optimizer: Optional[torch.optim.Optimizer] = None,
        data_collator: Optional[Callable] = None,
        num_shared_layers: Optional[int] = None,
        lr_scheduler: Optional[torch.optim.lr_scheduler.LRScheduler] = None,
        training_data_collator: Optional[Callable] = None,
    ) -> None:
        """
        Args:
            config: settings; its run-time fields (`world_size`, ...) are filled in
            model: the policy with its value head
            ref_model: what the KL penalty is measured against. None: for a PEFT model the model without its adapter
                (or the adapter that training started from), else a frozen copy of the policy
            tokenizer: pads, and knows the end-of-sequence token
            dataset: makes `trainer.dataloader`
            optimizer: over the policy's parameters. None: Adam with `config.learning_rate`
            data_collator: joins the dataloader's samples
            num_shared_layers: with `ref_model=None`, share and freeze that many bottom layers
            lr_scheduler: of `optimizer`; stepped once per `step`
            training_data_collator: pads the model's inputs in place of the trainer's own right padding

        Raises:
            ValueError: an argument of the wrong type, or settings that contradict each other.
        """
        config, model = check_arguments(config, model, ref_model, tokenizer, dataset, lr_scheduler)
        super().__init__(config)
        if config.seed is not None:
            set_seed(config.seed)
        if num_shared_layers is not None and ref_model is not None:
            warnings.warn("num_shared_layers is ignored: a ref_model was given", UserWarning, stacklevel=2)
        self.tokenizer = tokenizer
        self.is_encoder_decoder: bool = getattr(model, "is_encoder_decoder", False)
        self.is_peft_model: bool = getattr(model, "is_peft_model", False)
        self.accelerator = start_accelerator(config, self.is_encoder_decoder, self.is_peft_model)
        self.current_device = self.accelerator.device
        self.is_distributed = self.accelerator.num_processes > 1

        self.model: Any = model
        # differs from v0.7: a reference given beside a PEFT model was ignored
        self._reference_is_adapter = self.is_peft_model and (ref_model is None or config.exact_v07)
        if ref_model is None and not self.is_peft_model:
            ref_model = create_reference_model(model, num_shared_layers=num_shared_layers)
        self.ref_model: Any = ref_model
        self.optional_peft_ctx: Callable = nullcontext
        if self._reference_is_adapter:
            self.optional_peft_ctx = reference_context(model, config)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        self.model_params = [p for p in model.parameters() if p.requires_grad]
        self._layout = make_layout(config, tokenizer, self.is_encoder_decoder)
        models = [known for known in (model, ref_model) if known is not None]
        self._length_limits = LengthLimits(models, self.is_encoder_decoder, self._layout.fixed_length)
        self._forward_size = ForwardSize(config.forward_tokens)
        self._forward = TokenForward(self.accelerator.unwrap_model, self._layout, config.temperature)
        for known in models:
            fuse_activations(known)
            self._forward.register(known)

        self.dataset = dataset
        self.dataloader: Any = None if dataset is None else self.prepare_dataloader(dataset, data_collator)
        self.data_collator: Any = training_data_collator or DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self._custom_collator = training_data_collator is not None
        self.optimizer: Any = optimizer or make_optimizer(self.model_params, config.learning_rate)
        self.lr_scheduler: Any = lr_scheduler
        prepare(self)
        self._updater = make_updater(self)

        self.kl_ctl = make_kl_controller(config)
        self.running = RunningMoments(self.accelerator)
        self._counters = Counters()
        self._training = False
        self._last_step: Optional[StepFacts] = None
        self._sampling = SamplingWatch(config.temperature)
        self._failed_trackers: set[str] = set()
        self._callbacks = configured_callbacks(self)
        self._best = BestScore() if config.push_to_hub_if_best_kwargs else None
        self.push_to_hub_kwargs = config.push_to_hub_if_best_kwargs
        self._processes = Processes(self.accelerator)
        self._run_state = self._state_of_run()
        self._autosave = AutoSave(self._run_state, self._processes, self._counters, config)

    # --- construction ----------------------------------------------------------------------------------------

    def prepare_dataloader(
        self, dataset: Union[torch.utils.data.Dataset, datasets.Dataset], data_collator: Optional[Callable] = None
    ) -> torch.utils.data.DataLoader:
        """A shuffling loader of whole batches of `config.batch_size`; unused columns are removed first."""
        if isinstance(dataset, datasets.Dataset) and self.config.remove_unused_columns:
            dataset = without_unused_columns(dataset, self.model)
        return torch.utils.data.DataLoader(
            dataset,  # type: ignore[arg-type]
            batch_size=self.config.batch_size,
            collate_fn=data_collator,
            shuffle=True,
            drop_last=True,
        )

    def _state_of_run(self) -> RunState:
        policy = self.accelerator.unwrap_model(self.model)
        parts = {
            "policy": policy,
            "optimizer": self.optimizer,
            "counters": self._counters,
            "kl_controller": self.kl_ctl,
            "scheduler": self.lr_scheduler,
            "scaler": self.accelerator.scaler,
            "running": self.running,
            "best": self._best,
            "checkup": self._sampling.checkup,
            "loader": self.dataloader,
            "memory": self._forward_size,
        }
        of_run = partial(
            identity,
            processes=self._processes,
            settings=vars(self.config),
            policy=policy,
            reference=None if self.ref_model is None else self.ref_model.pretrained_model,
            optimizer=self.optimizer,
            scheduler=self.lr_scheduler,
            kl_controller=self.kl_ctl,
            dataset=self.dataset,
            loader=self.dataloader,
            mixed_precision=self.accelerator.mixed_precision,
        )
        return RunState(self._processes, parts, of_run, self.config)

    @property
    def steps_done(self) -> int:
        """Calls of `step` that made an update, those of the run that `load_state` went on with included."""
        return self._counters.steps_done

    @steps_done.setter
    def steps_done(self, steps: int) -> None:
        self._counters.steps_done = steps

    @property
    def current_step(self) -> int:
        """Number of the last step that was logged."""
        return self._counters.current_step

    @current_step.setter
    def current_step(self, step: int) -> None:
        self._counters.current_step = step

    @property
    def highest_reward(self) -> torch.Tensor:
        """With `push_to_hub_if_best_kwargs`: the best mean score so far, 0-d."""
        return self._best.highest_reward

    def _overrides(self, *methods: str) -> bool:
        """Whether a subclass replaced any of these methods, or a script replaced it on this object."""
        return any(name in vars(self) or getattr(type(self), name) is not getattr(PPOTrainer, name) for name in methods)

    @property
    def _reference(self) -> Any:
        return self.model if self._reference_is_adapter else self.ref_model

    # --- the step --------------------------------------------------------------------------------------------

    @_autosaved
    @PPODecorators.empty_device_cache()
    def step(
        self,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        scores: list[torch.Tensor],
        response_masks: Optional[list[torch.Tensor]] = None,
        *,
        old_logprobs: Optional[list[torch.Tensor]] = None,
        ref_logprobs: Optional[list[torch.Tensor]] = None,
        values: Optional[list[torch.Tensor]] = None,
    ) -> dict[str, Any]:
        """One PPO update from a batch of scored responses (Schulman et al. 2017, algorithm 1, the update part).

        Args:
            queries: token ids, each [Q_i], any integer dtype
            responses: token ids, each [R_i], as `generate(..., return_prompt=False)` gives them
            scores: for each sample one finite number (or a tensor with one element), which counts at its last
                counted token; or a vector [R_i], one number per response token, 0 on the tokens that do not count
            response_masks: each [R_i], 1 where a response token was written by the policy and counts, 0 where a
                tool or template wrote it
            old_logprobs, ref_logprobs, values: what you already have, each a list of [R_i], one number per response
                token: log-probs by the policy that sampled and by the reference, and values of the policy. What is
                given is not computed again (`kl_penalty="full"` needs both models all the same)

        Returns:
            statistics: scalars as floats, small arrays as NumPy arrays, arrays with a value per token as tensors.
            Every key with its formula stands in `trl_step.algorithms.stats.STATS`.

        Raises:
            ValueError: an input is wrong, the model gives a log-prob or value that is not finite, or the returns are
                too large for a loss in float32. The message names the list and the sample; weights, optimizer, KL
                coefficient and random streams are untouched.
        """
        start = time.perf_counter()
        PPODecorators.optimize_device_cache = bool(self.config.optimize_device_cache)

        # 1. check and place the inputs
        given = Given(old_logprobs, ref_logprobs, values)
        queries, responses, raw_scores, response_masks = self._step_safety_checker(
            None, queries, responses, scores, response_masks, given
        )
        # 2. scores: scale, normalise, clip; the running moments are kept once nothing can fail any more
        moments = copy.copy(self.running)
        scored = shaped(raw_scores, moments, responses, response_masks, self.config)
        # 3. roll forward: log-probs and values of policy and reference on the response tokens
        timing, mark = {}, time.perf_counter()
        rolled = roll_forward(self, queries, responses, response_masks, given)
        self._raise_together(rolled.non_finite())
        timing["time/ppo/forward_pass"] = -mark + (mark := time.perf_counter())
        # 4. per-token rewards, then advantages and returns
        with torch.no_grad():
            rewards, non_score_rewards, kls = self._token_rewards(scored, rolled, queries, responses)
            timing["time/ppo/compute_rewards"] = -mark + (mark := time.perf_counter())
            old_values, advantages, returns = self.compute_advantages(rolled.values, rewards, rolled.masks)
            timing["time/ppo/compute_advantages"] = -mark + (mark := time.perf_counter())
        rolled = rolled._replace(distributions=None)
        rollout = Rollout.of(rolled, queries, responses, old_values, advantages, returns)
        self._raise_together(rollout.out_of_range())
        self.running.load_state_dict(moments.state_dict())
        hub.push_if_best(self, sample_totals(scored))
        # 5. ppo_epochs x mini-batches: forward, loss, backward, clip, update, skip, early stop
        train_stats, epochs_run = run_epochs(self, rollout)
        timing["time/ppo/optimize_step"] = -mark + (mark := time.perf_counter())
        # 6. statistics, reduced over processes; KL controller; scheduler
        stats = self.record_step_stats(
            scores=sample_totals(scored),
            logprobs=rolled.logprobs,
            ref_logprobs=rolled.ref_logprobs,
            non_score_reward=non_score_rewards,
            train_stats=train_stats,
            kl_coef=self.kl_ctl.value,
            masks=rolled.masks,
            queries=queries,
            responses=responses,
            kls=kls,
        )
        if self.is_distributed:
            stats = self.gather_stats(stats)
        stats = readable(stats)
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        timing["time/ppo/calc_stats"] = time.perf_counter() - mark
        self.kl_ctl.update(stats["objective/kl"], int(self._reduce_sum(torch.tensor(float(len(queries))))))
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.steps_done += 1
        timing["time/ppo/total"] = time.perf_counter() - start
        self._last_step = StepFacts.of(rollout, epochs_run, timing["time/ppo/total"])
        seen = circumstances(self, queries, given, given_masks=response_masks is not None)
        self._sampling.saw_step(stats, seen, self.accelerator.is_main_process)
        stats |= timing
        for callback in self._callbacks:
            callback(StepReport(self, self.steps_done, stats, queries, responses, raw_scores))
        return stats

    # --- stage 1: inputs -------------------------------------------------------------------------------------

    def _step_safety_checker(
        self,
        batch_size: Optional[int],
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        scores: list[torch.Tensor],
        masks: Optional[list[torch.Tensor]] = None,
        given: Optional[Given] = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, Optional[list[torch.Tensor]]]:
        """Checked inputs on the device; `batch_size` is v0.7's and no longer limits the number of samples."""
        error: ValueError | None = None
        inputs: Any = None
        try:
            inputs = checked_for(self, queries, responses, scores, masks, given or Given())
        except ValueError as found:
            error = found
        self._raise_together(error)
        scored = (
            inputs.scores if isinstance(inputs.scores, torch.Tensor) else pad_sequence(inputs.scores, batch_first=True)
        )
        return inputs.queries, inputs.responses, scored, inputs.response_masks

    def prepare_model_inputs(
        self, queries: list[torch.Tensor], responses: list[torch.Tensor]
    ) -> Mapping[str, torch.Tensor]:
        """Padded inputs of the model, each [B, S] int64.

        `input_ids` and `attention_mask` of query and response joined; for an encoder-decoder model of the queries,
        with `decoder_input_ids` and `decoder_attention_mask` of the responses.
        """
        return self._layout.model_inputs(queries, responses, self._collate if self._custom_collator else None)

    def _collate(self, sequences: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        batch = self.data_collator([{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in sequences])
        padded = Padded(*(batch[key].to(self.current_device) for key in Padded._fields))
        # differs from v0.7: padding in front moved the positions of models that count them, such as GPT-2 and BART
        return (padded if self.config.exact_v07 else padding_behind(*padded))._asdict()

    # --- stage 3: roll forward -------------------------------------------------------------------------------

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
        masks = self._layout.response_positions(queries, responses, model_inputs, response_masks)
        places, size = self._layout.places(model_inputs, masks), self.config.mini_batch_size
        with nullcontext() if self._training else eval_mode(model), self.accelerator.autocast():
            if return_logits or torch.is_grad_enabled():
                logprobs, logits, values = plain_sweep(self._forward, model, model_inputs, places.left_padded, size)
                return logprobs, logits if return_logits else None, values, masks
            return *sweep(self._forward, self._forward_size, model, model_inputs, places, size), masks

    # --- stage 4: rewards and advantages ---------------------------------------------------------------------

    def compute_rewards(
        self, scores: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per-token rewards: the KL penalty everywhere, the score on the last counted token.

        Args:
            scores: [B]; [B, T] if `step` was given a vector of token scores for any sample
            logprobs, ref_logprobs: [B, T], for `kl_penalty="full"` [B, T, V]
            masks: [B, T]

        Returns:
            rewards, their part without the score, and the KL penalty in nats: each [B, T]
        """
        kls = torch.stack([self._kl_penalty(*pair) for pair in zip(logprobs, ref_logprobs, strict=True)])
        return *token_rewards(scores, kls, masks, self.kl_ctl.value), kls

    def _token_rewards(
        self,
        scores: torch.Tensor,
        rolled: RolledForward,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if scores.dim() == 2:
            scores = self._layout.at_predicted(scores, queries, responses, rolled.inputs)
        if rolled.divergence is not None:
            return *token_rewards(scores, rolled.divergence, rolled.masks, self.kl_ctl.value), rolled.divergence
        seen = rolled.distributions or (rolled.logprobs, rolled.ref_logprobs)
        return self.compute_rewards(scores, *seen, rolled.masks)

    def _kl_penalty(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        """The penalty of one sample [T] from log-probs [T], for `full` [T, V]; see `algorithms.kl.kl_penalty`."""
        return kl_penalty(logprob, ref_logprob, self.config.kl_penalty)

    def compute_advantages(
        self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masked values, whitened advantages and returns, each [B, T], from values, rewards and mask [B, T]."""
        return advantages_and_returns(
            values,
            rewards,
            mask,
            self.config.gamma,
            self.config.lam,
            self.config.whiten_rewards,
            # differs from v0.7: masked tokens took time, and whitened rewards leaked out of the padding
            masked_steps_take_time=self.config.exact_v07,
            reduce_sum=self._reduce_sum,
        )

    # --- stage 5: optimise -----------------------------------------------------------------------------------

    @PPODecorators.empty_device_cache()
    def train_minibatch(
        self,
        old_logprobs: torch.Tensor,
        values: torch.Tensor,
        logprobs: torch.Tensor,
        logits: torch.Tensor,
        vpreds: torch.Tensor,
        mask: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Backward of one mini-batch, and the optimizer's step where one is due.

        Args:
            logits: [b, T, V]; everything else [b, T]

        Returns:
            the statistics of `loss`
        """
        loss_p, loss_v, stats = self.loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        if "policy/ratio" not in stats:
            stats["policy/ratio"] = torch.exp(logprobs - old_logprobs).detach()
        return self._update(loss_p + loss_v, stats, mask)

    def _update(
        self, loss: torch.Tensor, stats: dict[str, torch.Tensor], mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        skipped = self._updater.backward(loss, mean_over(stats["policy/ratio"], mask))
        return _without_losses(stats, skipped)

    def loss(
        self,
        old_logprobs: torch.Tensor,
        values: torch.Tensor,
        logits: torch.Tensor,
        vpreds: torch.Tensor,
        logprobs: torch.Tensor,
        mask: torch.Tensor,
        advantages: torch.Tensor,
        returns: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Policy loss, value loss times `vf_coef`, and statistics of a mini-batch.

        Both losses are 0 where the mean ratio exceeds `ratio_threshold`; that `train_minibatch` then leaves the
        weights alone is not this method's doing.

        Args:
            logits: [b, T, V], for the entropy; everything else [b, T]
        """
        config = self.config
        policy = mean_over(policy_losses(logprobs, old_logprobs, advantages, config.cliprange).losses, mask)
        value = mean_over(value_losses(vpreds, values, returns, config.cliprange_value).losses, mask)
        with torch.no_grad():
            entropy = entropy_from_logits(logits.float() / config.temperature)
        stats = minibatch_statistics(
            logprobs=logprobs.detach(),
            old_logprobs=old_logprobs,
            vpreds=vpreds.detach(),
            values=values,
            advantages=advantages,
            returns=returns,
            mask=mask,
            entropy=entropy,
            cliprange=config.cliprange,
            cliprange_value=config.cliprange_value,
            vf_coef=config.vf_coef,
        )
        if not bool(mean_over(stats["policy/ratio"], mask) <= config.ratio_threshold):
            policy, value, stats = policy * 0.0, value * 0.0, _without_losses(stats, torch.ones_like(policy).bool())
        return policy, config.vf_coef * value, stats

    def _early_stop(self, policykl: torch.Tensor) -> bool:
        """Whether the policy moved too far for another epoch: policykl (0-d), averaged over processes, above
        1.5 * target_kl."""
        if not self.config.early_stopping:
            return False
        mean = float(self._reduce_sum(policykl.detach().float())) / self.accelerator.num_processes
        if mean > 1.5 * self.config.target_kl:
            self.optimizer.zero_grad()
            return True
        return False

    # --- stage 6: statistics ---------------------------------------------------------------------------------

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """Statistics of a step, over all processes; see `trl_step.algorithms.stats.STATS`.

        Args:
            kl_coef: the coefficient that the step used
            data: `scores` [B]; `logprobs`, `ref_logprobs`, `non_score_reward`, `kls`, `masks` [B, T]; `queries`,
                `responses`; `train_stats`: a dictionary of [mini-batches, 1] and [1, n] tensors
        """
        train_stats = data.pop("train_stats")
        stats = rollout_statistics(kl_coef=kl_coef, end_tokens=end_tokens(self), reduce_sum=self._reduce_sum, **data)
        for key, value in train_stats.items():
            stats[f"ppo/{key}"] = value.float().mean(dim=0)
        error, variance = stats["ppo/val/error"], stats["ppo/returns/var"]
        # differs from v0.7: it was NaN or infinite where the returns do not vary
        stats["ppo/val/var_explained"] = torch.where(variance > 0, 1 - error / variance, torch.zeros_like(error))
        return stats

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The mean over processes of every tensor with one element; arrays stay those of this process."""
        # an array of one sample is an array still: other processes may have more
        names = [
            k for k, v in stats.items() if isinstance(v, torch.Tensor) and v.numel() == 1 and k not in LOGGED_ARRAYS
        ]
        packed = torch.stack([stats[key].detach().float().flatten()[0].to(self.current_device) for key in names])
        means = self._reduce_sum(packed) / self.accelerator.num_processes
        return {**stats, **dict(zip(names, means, strict=True))}

    # --- several processes ------------------------------------------------------------------------------------

    def _reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self.is_distributed:
            return tensor
        return self.accelerator.reduce(tensor.to(self.current_device), reduction="sum")

    def _reduce_max(self, number: int) -> int:
        if not self.is_distributed:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.current_device)).max())

    def _raise_together(self, error: Optional[ValueError]) -> None:
        """Raise on every process if any process found an error, so that none waits for the others for ever."""
        failed = float(self._reduce_sum(torch.tensor(float(error is not None), device=self.current_device)))
        if error is not None:
            raise error
        if failed:
            raise RuntimeError("another process refused its inputs to step; its message stands in its own output")


def _without_losses(stats: dict[str, torch.Tensor], skipped: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of a mini-batch; where it was `skipped` (0-d bool) its losses count as 0."""
    return {key: value.masked_fill(skipped, 0.0) if key.startswith("loss/") else value for key, value in stats.items()}
