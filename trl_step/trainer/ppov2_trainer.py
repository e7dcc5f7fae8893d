"""`PPOv2Trainer`: PPO with `train()`, named as in TRL 0.9 to 0.11; `trl_step.experimental.ppo` has later names."""

from __future__ import annotations

from functools import partial
from typing import Any, Optional

import torch

from trl_step.algorithms.advantages.gae import advantages_and_returns
from trl_step.algorithms.rewards import last_counted
from trl_step.core import masked_whiten
from trl_step.data.special_tokens import tokenizer_of
from trl_step.models import AutoModelForCausalLMWithValueHead
from trl_step.models.adapters import active_adapter
from trl_step.models.inner_model import is_peft_model
from trl_step.sampling.sampler import Samples
from trl_step.trainer.batches.checks import StepInputs
from trl_step.trainer.batches.rollout import Rollout
from trl_step.trainer.engine.engine import Engine
from trl_step.trainer.loop import LoopStep, OnPolicyTrainer
from trl_step.trainer.ppov2_config import PPOv2Config
from trl_step.trainer.text.peft_setup import prepare_for_training


class PPOStep(LoopStep):
    """The step of PPO with `train()`.

    With `exact` the score of an answer that came to its end is the reward of one more token, after the end, which has a
    value and no policy loss; whitening is that of each process.
    """

    after_end: Optional[torch.Tensor] = None
    """bool [B], the samples of this step with such a token; None unless `exact` is set"""

    def _policy_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """`mask` [B, T] of the whole batch without the tokens after the end."""
        if self.after_end is None:
            return mask
        kept = (~self.after_end).to(mask).unsqueeze(1)
        last = last_counted(mask).unsqueeze(1)
        return mask.scatter(1, last, mask.gather(1, last) * kept)

    def compute_rewards(
        self, scores: torch.Tensor, logprobs: torch.Tensor, ref_logprobs: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As in `PPOTrainer`; there is no KL after the end."""
        if self.after_end is not None:
            ref_logprobs = torch.where(self._policy_mask(masks).bool(), ref_logprobs, logprobs)
        return super().compute_rewards(scores, logprobs, ref_logprobs, masks)

    def compute_advantages(
        self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As in `PPOTrainer`; with `exact` whitened over the policy's tokens of this process."""
        if self.after_end is None:
            return super().compute_advantages(values, rewards, mask)
        config, policy = self.config, self._policy_mask(mask)
        found = advantages_and_returns(
            values, rewards, mask, config.gamma, config.lam, config.whiten_rewards, whiten=False
        )
        return found.values, masked_whiten(found.advantages, policy) * policy, found.returns

    def _with_advantages(self, rollout: Rollout) -> tuple[Rollout, dict[str, Any]]:
        rollout, found = super()._with_advantages(rollout)
        if self.after_end is not None:
            rollout = rollout._replace(importance=self._policy_mask(rollout.mask).float())
        return rollout, found

    def _engine(self, given: StepInputs) -> Engine:
        engine = super()._engine(given)
        if self.after_end is None:
            return engine

        def train(batch: Rollout) -> dict[str, torch.Tensor]:
            # the mean policy loss is one over the policy's tokens
            share = batch.mask.sum() / batch.importance.sum().clamp(min=1)
            return engine.train(batch._replace(importance=batch.importance * share))

        return engine._replace(train=train)


class PPOv2Trainer(OnPolicyTrainer):
    """PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) with `train()`: draws answers to prompts,
    scores them, and updates policy and critic.

    Args:
        config: settings; the run-time fields are filled in
        tokenizer: pads, and knows the end token
        policy: a causal language model, or a PeftModel
        ref_policy: what the KL penalty is measured against; None: the policy without its adapter, or a frozen copy
        reward_model: a model for sequence classification with one label; a function `texts -> numbers`; or one with
            the parameters `prompts` and `completions`. Functions also get the columns that they have parameters for
        train_dataset: rows with `input_ids`, a prompt's token ids
        value_model: the critic, a model for sequence or token classification with one label; None: a value head on the
            policy
        data_collator: joins rows to a batch; None: for prompts of any length
        eval_dataset: rows for the tables of `generate_completions`
        optimizers: optimizer and scheduler; None: those that `config` asks for
        callbacks: `transformers.TrainerCallback`s
        processing_class: the newer name of `tokenizer`
        peft_config: `peft.PeftConfig`: train an adapter of this kind

    Raises:
        ValueError, TypeError: something that cannot work; the message names the argument or the field.
    """

    step_class = PPOStep

    def __init__(
        self,
        config: Optional[PPOv2Config] = None,
        tokenizer: Any = None,
        policy: Any = None,
        ref_policy: Any = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: Any = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Optional[list[Any]] = None,
        processing_class: Any = None,
        peft_config: Any = None,
    ) -> None:
        if not isinstance(config, PPOv2Config):
            raise TypeError(f"the settings must be a {PPOv2Config.__name__}, got {type(config).__name__}")
        policy = _with_adapter(policy, peft_config, config)
        if value_model is None and policy is not None:
            policy = AutoModelForCausalLMWithValueHead.from_pretrained(policy)
        super().__init__(
            config,
            tokenizer_of(tokenizer, processing_class),
            policy,
            ref_policy,
            reward_model,
            train_dataset,
            data_collator,
            eval_dataset,
            optimizers,
            callbacks,
            value_model,
        )
        if config.ref_adapter_name is not None:
            wrapped = self.accelerator.unwrap_model(self.model)
            self.step_trainer.optional_peft_ctx = partial(
                active_adapter, wrapped.pretrained_model, config.ref_adapter_name
            )

    @property
    def algorithm_settings(self) -> dict[str, Any]:
        """PPO as settings of the step API's `PPOConfig`."""
        names = ("vf_coef", "cliprange_value", "gamma", "lam")
        kl = {"k1": "kl", "k3": "k3"}[self.args.kl_estimator]
        return {"kl_penalty": kl, **{name: getattr(self.args, name) for name in names}}

    def prepared(self, samples: Samples) -> Samples:
        """The answers as `step` gets them."""
        if not self.args.exact:
            return samples
        ended = [len(response) < self.args.response_length for response in samples.responses]
        self.step_trainer.after_end = torch.tensor(ended, device=self.step_trainer.current_device)
        return samples._replace(
            responses=[
                torch.cat((response, response[-1:])) if after_end else response  # which token it is changes nothing
                for response, after_end in zip(samples.responses, ended, strict=True)
            ]
        )


def _with_adapter(policy: Any, peft_config: Any, config: PPOv2Config) -> Any:
    """The policy with its new adapter, if there is one, and the right one active."""
    if peft_config is not None and is_peft_model(policy):
        policy = policy.merge_and_unload()
    policy = prepare_for_training(policy, peft_config, config)[0] if peft_config is not None else policy
    for name in ("model_adapter_name", "ref_adapter_name"):
        adapter = getattr(config, name)
        if adapter is not None and (not is_peft_model(policy) or adapter not in policy.peft_config):
            known = sorted(policy.peft_config) if is_peft_model(policy) else "none"
            raise ValueError(f"{name}={adapter!r} is no adapter of the policy, which has {known}")
    if config.model_adapter_name is not None:
        policy.set_adapter(config.model_adapter_name)
    return policy
