"""`PPOTrainer`: the step API. `PPOTrainer.step` reads like the algorithm.

Here are the step, and the methods of the algorithm that users override. `language_trainer.py` has models, data, forward
passes and sampling, with `language/` for the parts; `step_trainer.py` has what is neither PPO nor language. The parts
that they are made of:

- `settings/`: what `PPOConfig` may be
- `batches/`: inputs are checked, shaped and padded (stages 1 and 2)
- `engine/`: what policy and reference say about the responses (stage 3), forward and backward of a mini-batch (stage 5)
- `updates/`: epochs of mini-batches, the optimizer's steps (stage 5)
- `processes/`, `runs/`, `reports/`: several processes; what a run keeps; logs, callbacks, cost

The maths is in `trl_step/algorithms/` (advantages, losses and statistics, as the settings ask for them) and
`trl_step/head/`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Optional, Union

import torch
from transformers import PreTrainedTokenizerBase

from trl_step.algorithms.advantages.estimators import Comparison, configured_advantages
from trl_step.algorithms.advantages.group import group_counts
from trl_step.algorithms.kl import kl_penalty, make_kl_controller
from trl_step.algorithms.losses.check import check_policy_losses
from trl_step.algorithms.losses.policy import COUPLED, configured_policy_losses
from trl_step.algorithms.losses.tokens import TokenLosses, mean_over, token_weights
from trl_step.algorithms.objective import Minibatch, Objective, configured_objective
from trl_step.algorithms.rewards import RunningMoments, sample_totals, shape_scores, token_rewards
from trl_step.algorithms.stats import LOGGED_ARRAYS, readable, rollout_statistics, training_statistics
from trl_step.core import PPODecorators, entropy_from_logits, masked_whiten
from trl_step.data.special_tokens import tokenizer_of
from trl_step.lazy import legacy_names
from trl_step.models import PreTrainedModelWrapper
from trl_step.models.notices import warn_user
from trl_step.models.shortcuts.modes import kept_modes, training_without_dropout
from trl_step.trainer.batches.checks import Extras, StepInputs, check_arguments
from trl_step.trainer.batches.given import comparison_of, needs_values, warn_of_one_token, with_factors
from trl_step.trainer.batches.rollout import Precomputed, Rollout
from trl_step.trainer.batches.scores import ScoresGiven
from trl_step.trainer.engine.engine import Engine, HookEngine
from trl_step.trainer.language_trainer import LanguageTrainer
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.reports.callbacks import StepReport, call_all
from trl_step.trainer.reports.clock import Clock
from trl_step.trainer.reports.cost import StepFacts
from trl_step.trainer.reports.hub import MODEL_CARD_TEMPLATE
from trl_step.trainer.updates.epochs import Trained, run_epochs
from trl_step.trainer.updates.updater import without_losses
from trl_step.trainer.updates.what_trains import trained_now

if TYPE_CHECKING:
    import datasets

IMPORTED_BY_07 = {
    "trl_step.core": (
        "WANDB_PADDING", "clip_by_value", "convert_to_scalar", "flatten_dict", "logprobs_from_logits", "masked_mean",
        "masked_var", "set_seed", "stack_dicts", "stats_to_np",
    ),
    "trl_step.import_utils": ("is_npu_available", "is_xpu_available"),
    "trl_step.models": ("SUPPORTED_ARCHITECTURES", "create_reference_model"),
    "trl_step.trainer": ("AdaptiveKLController", "BaseTrainer", "FixedKLController"),
}  # fmt: skip
"""Names that scripts import from this module, as that of release 0.7 imported them."""
if not TYPE_CHECKING:
    __getattr__ = legacy_names(__name__, IMPORTED_BY_07)

__all__ = ["MODEL_CARD_TEMPLATE", "PPOTrainer"]


class PPOTrainer(LanguageTrainer):
    """Tunes a language model with PPO from queries, responses and scores that your own loop makes.

    ```python
    trainer = PPOTrainer(PPOConfig(batch_size=16, mini_batch_size=16), model, ref_model, tokenizer)
    responses = trainer.generate(queries, return_prompt=False, max_new_tokens=32)
    stats = trainer.step(queries, responses, scores)
    ```

    Methods that a subclass may override, with the arguments and shapes of release 0.7: `batched_forward_pass`,
    `compute_rewards`, `compute_advantages`, `loss`, `train_minibatch`, `prepare_model_inputs`, `record_step_stats`,
    `log_stats`, `generate`, `prepare_dataloader`, `_early_stop`, `_kl_penalty`. Full logits are built for them when,
    and only when, a method that takes logits is overridden. New is `policy_losses`, which needs none.

    Class attribute, for subclasses:
        couples_tokens: whether the loss of a token in an overridden `policy_losses` depends on other tokens of its
            sample; None: as `config.policy_loss` does.
    """

    config: PPOConfig
    couples_tokens: Optional[bool] = None

    _tag_names: ClassVar[list[str]] = ["trl", "ppo"]

    _comparison = Comparison()
    _final_values: Optional[torch.Tensor] = None
    """of this step's truncated episodes, [B]"""
    _final_values_count: bool = False
    """whether `compute_advantages` has taken them"""
    _minibatch: Optional[Minibatch] = None
    """for methods with release 0.7's arguments, which lack some of it"""
    _losses_checked = False

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
        value_model: Any = None,
        processing_class: Optional[PreTrainedTokenizerBase] = None,
    ) -> None:
        """
        Args:
            config: settings; its run-time fields (`world_size`, ...) are filled in
            model: the policy with its value head; with a `value_model`, or an estimator that needs no values, a plain
                transformers model (causal or encoder-decoder) or a PeftModel around one as well
            ref_model: what the KL penalty is measured against. None: for a PEFT model the model without its adapter
                (or the adapter that training started from), else a frozen copy of the policy
            tokenizer: pads, and knows the end-of-sequence token
            dataset: makes `trainer.dataloader`
            optimizer: over the policy's parameters. None: Adam with `config.learning_rate`
            data_collator: joins the dataloader's samples
            num_shared_layers: with `ref_model=None`, share and freeze that many bottom layers
            lr_scheduler: of `optimizer`; stepped once per `step`
            training_data_collator: pads the model's inputs in place of the trainer's own right padding
            value_model: a separate critic, a value-head model or a transformers model for classification with one
                label; it is trained together with the policy, saved in `value_model` inside the policy's folder, and
                its gradient is clipped by itself
            processing_class: the newer name of `tokenizer`

        Raises:
            ValueError: an argument of the wrong type, settings that contradict each other, or a model that is not
                causal: a later token changes the logits of earlier positions.
        """
        tokenizer = tokenizer_of(tokenizer, processing_class)
        config, model, ref_model = check_arguments(
            config, model, ref_model, tokenizer, dataset, lr_scheduler, value_model
        )
        super().__init__(
            config,
            model,
            ref_model,
            tokenizer,
            dataset,
            optimizer,
            data_collator,
            num_shared_layers,
            lr_scheduler,
            training_data_collator,
            value_model,
        )
        if not config.needs_values and model.value_parameters():
            warn_user(
                f'advantage_estimator="{config.advantage_estimator}" needs no values: the value head stays as it is. A '
                "plain transformers model does as well"
            )
        self.kl_ctl = make_kl_controller(config.adap_kl_ctrl, config.init_kl_coef, config.target, config.horizon)
        self.running = RunningMoments(self.accelerator)
        self._start_run()

    def _parts(self) -> dict[str, Any]:
        return {**super()._parts(), "kl_controller": self.kl_ctl, "running": self.running}

    def _overrides(self, *methods: str) -> bool:
        """Whether a subclass replaced any of these methods, or a script replaced it on this object."""
        return any(name in vars(self) or getattr(type(self), name) is not getattr(PPOTrainer, name) for name in methods)

    # --- the step ------------------------------------------------------------------------------------------------

    @PPODecorators.empty_device_cache()
    def step(
        self,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        scores: ScoresGiven,
        response_masks: Optional[list[torch.Tensor]] = None,
        *,
        old_logprobs: Optional[list[torch.Tensor]] = None,
        ref_logprobs: Optional[list[torch.Tensor]] = None,
        values: Optional[list[torch.Tensor]] = None,
        sampling_logprobs: Optional[list[torch.Tensor]] = None,
        group_ids: Optional[Sequence[Any]] = None,
        advantages: Optional[Sequence[Any]] = None,
        baseline_scores: Optional[Sequence[Any]] = None,
        truncated: Optional[Sequence[bool]] = None,
    ) -> dict[str, Any]:
        """One update from a batch of scored responses (Schulman et al. 2017, algorithm 1, the update part).

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
            sampling_logprobs: log-probs by whatever drew the responses, each [R_i], at the temperature that it sampled
                at. How far they are from the policy's is logged (`ppo/sampling/...`); `importance_correction` says what
                follows from it
            group_ids: for `grpo` and `rloo` what tells groups of answers to one prompt apart, anything hashable; None:
                equal queries are a group. On several processes a group may lie on any of them
            advantages: for each sample one finite number, or a vector [R_i]; nothing is estimated then, values do not
                train, and scores are only logged. It needs `kl_in="loss"` or no KL penalty
            baseline_scores: for `remax`, the score of the greedy answer to each sample's query
            truncated: whether each episode was cut off by a limit instead of coming to its end; the value of the state
                after its last token (see `values_after`) then counts as the return that it would still have got

        Returns:
            statistics: scalars as floats, small arrays as NumPy arrays, arrays with a value per token as tensors.
            Every key with its formula is in `trl_step.algorithms.stats.STATS`.

        Raises:
            ValueError: an input is wrong, the model gives a log-prob or value that is not finite, or the returns are
                too large for a loss in float32. The message names the list and the sample; weights, optimizer, KL
                coefficient and random streams are untouched.
        """
        # the second saves the run if it is time, and holds Ctrl-C until the step is done
        with self.model_lock, self._autosave:
            clock, config = Clock(), self.config
            # 1. check and place the inputs
            precomputed = Precomputed(old_logprobs, ref_logprobs, values, sampling_logprobs)
            extras = Extras(group_ids, advantages, baseline_scores, truncated)
            given = self._checked(queries, responses, scores, response_masks, precomputed, extras)
            self._minibatch = self._final_values = None
            self._comparison = comparison_of(given, config, self.kl_ctl.value, self._processes)
            rollout, engine = self._batch(given), self._engine(given)
            raw_scores = sample_totals(rollout.scores)
            # 2. scores: scale, normalise, clip
            moments = copy.copy(self.running)
            rollout = self._with_shaped_scores(rollout, moments)
            # 3. roll forward: log-probs and values of policy and reference on the response tokens
            with clock("forward_pass"):
                rollout = engine.evaluate(rollout)
                self._final_values = self._values_of_truncated(given)
            # 4. per-token rewards, then advantages and returns
            with torch.no_grad(), clock("compute_rewards"):
                rollout = self._with_rewards(rollout)
            with torch.no_grad(), clock("compute_advantages"):
                self._final_values_count = not any(given.truncated or ()) or self._final_values is None
                rollout, found = self._with_advantages(rollout)
                if not self._final_values_count:
                    warn_user("truncated are ignored: compute_advantages is overridden, and does not call this one")
                self._final_values = None
                rollout, mismatch = with_factors(rollout, raw_scores, config, self._processes)
            self._accept(rollout, moments)
            # 5. ppo_epochs x mini-batches: forward, loss, backward, clip, update, skip, early stop
            with clock("optimize_step"), training_without_dropout(self.model), self._forward.buffers.kept():
                early_stop = self._early_stop if config.early_stopping else None
                with_values, policy = rollout.old_values is not None, self.accelerator.unwrap_model(self.model)
                self._updater.train_only(trained_now(policy, self._updater.parameters, with_values, self._warms_up))
                trained = run_epochs(rollout, engine.train, self._updater, self._processes, early_stop, config)
            # 6. statistics, reduced over processes; KL controller; scheduler
            with clock("calc_stats"):
                stats = self._statistics(rollout, trained, found | mismatch)
            self.kl_ctl.update(stats["objective/kl"], int(self._processes.sum(torch.tensor(float(len(queries))))))
            if self.lr_scheduler is not None:
                self.lr_scheduler.step()
            self._counters.steps_done += 1

            self._last_step = StepFacts.of(rollout, trained.epochs, clock.stop())
            self._diagnose(stats, given)
            stats |= clock.seconds
            report = StepReport(self, self._counters.steps_done, stats, given.queries, given.responses, raw_scores)
            call_all(self._callbacks, report, self._failed_callbacks)
            return stats

    def _engine(self, given: StepInputs) -> Engine:
        """How this step's batch is evaluated and trained on: fast, or through the methods that a subclass overrides."""
        fused, config = self._fused_engine(), self.config
        full, own_forward = config.kl_penalty == "full", self._overrides("batched_forward_pass")
        hooks = HookEngine(
            fused.models, self.batched_forward_pass, self.train_minibatch, self._layout.positions, config.temperature
        )
        with_values = needs_values(given, config)
        evaluate: Any = partial(fused.evaluate, exact_divergence=full, with_values=with_values)
        if own_forward or (full and self._overrides("compute_rewards", "_kl_penalty")):
            masks = given.response_masks
            evaluate = partial(hooks.evaluate, response_masks=masks, distributions=full, with_values=with_values)
        train: Any = partial(fused.train, objective=self._objective(with_values), updater=self._updater)
        if own_forward or self._overrides("loss", "train_minibatch"):

            def train(batch: Rollout) -> dict[str, torch.Tensor]:
                self._minibatch = batch.as_minibatch()
                with kept_modes(self.model):  # release 0.7's method calls `model.train()`, and dropout stayed on
                    return hooks.train(batch)

        return Engine(evaluate, train)

    # --- stage 2: scores -----------------------------------------------------------------------------------------

    def _with_shaped_scores(self, rollout: Rollout, moments: RunningMoments) -> Rollout:
        """Scores scaled, normalised and clipped as the settings say; `moments` takes this batch in."""
        config, scores = self.config, rollout.scores
        # differs from v0.7: use_score_norm without use_score_scaling did nothing
        use_norm = config.use_score_norm and (config.use_score_scaling or not config.exact_v07)
        mask = rollout.mask if scores.dim() == 2 else None
        settings = config.use_score_scaling, use_norm, config.score_clip
        shaped = shape_scores(scores, moments, *settings, mask)
        baselines = self._comparison.baseline_scores
        if baselines is not None:
            baselines = shape_scores(baselines, moments, *settings, update=False)
            self._comparison = self._comparison._replace(baseline_scores=baselines)
        return rollout._replace(scores=shaped)

    # --- stage 3: what policy and reference say ------------------------------------------------------------------

    def _values_of_truncated(self, given: StepInputs) -> Optional[torch.Tensor]:
        """The value of the state after each truncated sample, 0 for the others, [B]; None if values are not needed."""
        if given.truncated is None or not needs_values(given, self.config):
            return None
        cut = [i for i, truncated in enumerate(given.truncated) if truncated]
        values = torch.zeros(len(given.queries), device=self.current_device)
        values[cut] = self.values_after([given.queries[i] for i in cut], [given.responses[i] for i in cut])
        return values

    # --- stage 4: rewards and advantages -------------------------------------------------------------------------

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
        return *token_rewards(scores, kls, masks, self._kl_coef_of("reward")), kls

    def _kl_coef_of(self, place: str) -> float:
        """The KL coefficient, if the penalty acts in this `place`, else 0."""
        return float(self.kl_ctl.value) if self.config.kl_in == place else 0.0

    def _with_rewards(self, rollout: Rollout) -> Rollout:
        if rollout.divergence is not None:
            kls = rollout.divergence
            rewards, non_score_rewards = token_rewards(rollout.scores, kls, rollout.mask, self._kl_coef_of("reward"))
        else:
            logprobs, ref_logprobs = rollout.distributions or (rollout.old_logprobs, rollout.ref_logprobs)
            found = self.compute_rewards(rollout.scores, logprobs, ref_logprobs, rollout.mask)
            rewards, non_score_rewards, kls = found
        return rollout._replace(rewards=rewards, non_score_rewards=non_score_rewards, kls=kls, distributions=None)

    def _kl_penalty(self, logprob: torch.Tensor, ref_logprob: torch.Tensor) -> torch.Tensor:
        """The penalty of one sample [T] from log-probs [T], for `full` [T, V]; see `algorithms.kl.kl_penalty`."""
        return kl_penalty(logprob, ref_logprob, self.config.kl_penalty)

    def compute_advantages(
        self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Masked values, advantages (whitened if the settings say so) and returns, each [B, T].

        Args:
            values: [B, T]; zeros if the estimator needs none, and the returned values and returns are not used then
            rewards, mask: [B, T]
        """
        self._final_values_count = True
        return configured_advantages(
            self.config, values, rewards, mask, self._comparison, self._final_values, self._processes.sum
        )

    def _with_advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, Any]]:
        """The batch with its advantages, and statistics of its groups."""
        mask = rollout.mask
        if rollout.advantages is not None or not self._overrides("compute_advantages"):
            warn_of_one_token(rollout, self.config, self._processes)
        if rollout.advantages is not None:  # given
            given = rollout.advantages * mask
            if self.config.whiten_advantages:
                given = masked_whiten(given, mask, reduce_sum=self._processes.sum) * mask
            return rollout._replace(advantages=given), {}
        stats: dict[str, Any] = {}
        groups = self._comparison.groups
        if groups is not None:
            totals = groups.gather((rollout.rewards * mask).sum(dim=1), self._processes.sum)
            stats = {f"ppo/{key}": value for key, value in group_counts(totals, groups.everyone).items()}
        if rollout.old_values is None:
            advantages = self.compute_advantages(torch.zeros_like(rollout.rewards), rollout.rewards, mask)[1]
            return rollout._replace(advantages=advantages), stats
        values, advantages, returns = self.compute_advantages(rollout.old_values, rollout.rewards, mask)
        return rollout._replace(old_values=values, advantages=advantages, returns=returns), stats

    def _accept(self, rollout: Rollout, moments: RunningMoments) -> None:
        """Refuse the batch, or take it as a whole: nothing has moved before, and nothing fails after.

        Raises:
            ValueError: a log-prob, value, advantage or return that cannot be trained on, or a `policy_losses` of the
                user's own that cannot be differentiated here; on every process.
        """
        self._processes.raise_together(rollout.non_finite())
        self._processes.raise_together(rollout.out_of_range())
        if self._overrides("policy_losses"):
            self._processes.raise_together(self._wrong_losses(rollout))
        self.running.load_state_dict(moments.state_dict())
        self._push_if_best(sample_totals(rollout.scores))

    def _wrong_losses(self, rollout: Rollout) -> Optional[ValueError]:
        """What is wrong with a subclass's `policy_losses`, which is tried until a batch could show all of it."""
        if self._losses_checked:
            return None
        try:
            numbers = rollout.old_logprobs, rollout.mask
            self._losses_checked = check_policy_losses(self.policy_losses, *numbers, self._couples_tokens)
        except ValueError as error:
            return error
        return None

    # --- stage 5: optimise ---------------------------------------------------------------------------------------

    @property
    def _couples_tokens(self) -> bool:
        if self.couples_tokens is None or not self._overrides("policy_losses"):
            return self.config.policy_loss in COUPLED
        return self.couples_tokens

    @property
    def _warms_up(self) -> bool:
        """Whether only values train in this step."""
        return self.steps_done < self.config.value_warmup_steps

    def _objective(self, with_values: bool) -> Objective:
        """What mini-batches are trained on, with the settings as they are now."""

        def own_losses(logprobs: torch.Tensor, batch: Minibatch) -> TokenLosses:
            before, self._minibatch = self._minibatch, batch
            try:
                return TokenLosses(self.policy_losses(logprobs, batch.old_logprobs, batch.advantages, batch.mask))
            finally:
                self._minibatch = before

        objective = configured_objective(self.config, with_values)._replace(
            kl_coef=self._kl_coef_of("loss"), policy_coef=0.0 if with_values and self._warms_up else 1.0
        )
        if self._overrides("policy_losses"):
            return objective._replace(policy_losses=own_losses, couples_tokens=self._couples_tokens)
        return objective

    def policy_losses(
        self, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """The policy's loss of each token, [b, T], differentiable in `logprobs`; here that of `config.policy_loss`.

        An override stays on the fast path: autograd runs over these small tensors, and the output embedding gets the
        slopes. Means, KL, entropy bonus and importance weights follow by themselves, and what the mask leaves out does
        not count. If the loss of a token depends on other tokens of its sample, say so with `couples_tokens = True`.

        Args:
            logprobs: now, [b, T], 0 where the mask is 0
            old_logprobs: at the start of the step, [b, T]
            advantages: [b, T]
            mask: [b, T], 1 where a token counts
        """
        known = self._minibatch  # dppo takes the sampler's log-probs, which this method is not given
        sampled = None if known is None or known.mask.shape != mask.shape else known.sampling_logprobs
        batch = Minibatch(mask, mask, old_logprobs, advantages, sampling_logprobs=sampled)
        return configured_policy_losses(self.config)(logprobs, batch).losses

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
        """Backward of one mini-batch, and the optimizer's step if one is due.

        Args:
            old_logprobs, values: at the start of the step, [b, T]
            logprobs, logits, vpreds: now, [b, T], logits [b, T, V]
            mask, advantages, returns: [b, T]

        Returns:
            the statistics of `loss`

        Raises:
            ValueError: the loss is not finite though the ratio is; the weights are untouched.
        """
        loss_p, loss_v, stats = self.loss(old_logprobs, values, logits, vpreds, logprobs, mask, advantages, returns)
        if "policy/ratio" not in stats:
            stats["policy/ratio"] = torch.exp(logprobs - old_logprobs).detach()
        return self._updater.update(loss_p + loss_v, stats, mask)

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

        Both losses are 0 if the mean ratio exceeds `ratio_threshold`; it is `train_minibatch` that then leaves the
        weights alone.

        Args:
            old_logprobs, values: at the start of the step, [b, T]
            logits: now, [b, T, V], for the entropy
            vpreds, logprobs: now, [b, T]
            mask, advantages, returns: [b, T]

        Returns:
            two 0-d losses, and statistics: 0-d, "policy/ratio" and "policy/advantages" [b, T]

        Raises:
            ValueError: a KL penalty in the loss, outside of a step, where the reference's log-probs are not known.
        """
        config, known = self.config, self._minibatch
        with nullcontext() if config.entropy_coef else torch.no_grad():
            entropy = entropy_from_logits(logits.float() / config.temperature)
        if known is None or known.mask.shape != mask.shape:
            known = Minibatch(mask, mask, old_logprobs, advantages)
        batch = known._replace(
            mask=mask,
            weights=token_weights(mask, config.loss_normalization, config.loss_constant_length),
            old_logprobs=old_logprobs,
            advantages=advantages,
            old_values=values,
            returns=returns,
        )
        objective = self._objective(with_values=values is not None)
        if objective.kl_coef and batch.ref_logprobs is None:
            raise ValueError("kl_in='loss' needs the reference's log-probs, which loss knows only inside of a step")
        losses = objective.evaluate(batch, logprobs=logprobs, entropy=entropy, vpreds=vpreds)
        policy, stats = losses.policy, losses.statistics
        if losses.value is not None:
            value = objective.vf_coef * losses.value
        else:  # processes wait for the gradient of every parameter, those of an unused value head too
            value = torch.zeros_like(policy) if vpreds is None else (vpreds * 0.0).sum()
        if not bool(mean_over(stats["policy/ratio"], mask) <= config.ratio_threshold):
            policy, value = policy * 0.0, value * 0.0
            stats = without_losses(stats, torch.ones_like(policy).bool())
        return policy, value, stats

    def _early_stop(self, policykl: torch.Tensor) -> bool:
        """Whether the policy moved too far for another epoch: policykl (0-d), averaged over processes, above
        1.5 * target_kl."""
        if not self.config.early_stopping:
            return False
        mean = float(self._processes.mean(policykl.detach().float()))
        if mean > 1.5 * self.config.target_kl:
            self.optimizer.zero_grad()
            return True
        return False

    # --- stage 6: statistics -------------------------------------------------------------------------------------

    def _statistics(self, rollout: Rollout, trained: Trained, more: dict[str, Any]) -> dict[str, Any]:
        stats = more | self.record_step_stats(
            scores=sample_totals(rollout.scores),
            logprobs=rollout.old_logprobs,
            ref_logprobs=rollout.ref_logprobs,
            non_score_reward=rollout.non_score_rewards,
            train_stats=trained.statistics,
            kl_coef=self.kl_ctl.value,
            masks=rollout.mask,
            queries=rollout.queries,
            responses=rollout.responses,
            kls=rollout.kls,
        )
        stats = readable(self.gather_stats(stats) if self.is_distributed else stats)
        stats["ppo/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return stats

    def record_step_stats(self, kl_coef: float, **data: Any) -> dict[str, Any]:
        """Statistics of a step, over all processes; see `trl_step.algorithms.stats.STATS`.

        Args:
            kl_coef: the coefficient that the step used
            data: `scores` [B]; `logprobs`, `ref_logprobs`, `non_score_reward`, `kls`, `masks` [B, T]; `queries`,
                `responses`; `train_stats`: a dictionary of [mini-batches, 1] and [1, n] tensors
        """
        train_stats = data.pop("train_stats")
        stats = rollout_statistics(kl_coef=kl_coef, end_tokens=self._end_tokens, reduce_sum=self._processes.sum, **data)
        return stats | training_statistics(train_stats)

    def gather_stats(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The mean over processes of every tensor with one element; arrays stay those of this process."""
        # an array of one sample is an array still: other processes may have more
        names = [
            k for k, v in stats.items() if isinstance(v, torch.Tensor) and v.numel() == 1 and k not in LOGGED_ARRAYS
        ]
        packed = torch.stack([stats[key].detach().float().flatten()[0].to(self.current_device) for key in names])
        means = self._processes.mean(packed)
        return {**stats, **dict(zip(names, means, strict=True))}
