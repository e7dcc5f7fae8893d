"""`RLOOTrainer`: REINFORCE with a leave-one-out baseline, with `train()`."""

from __future__ import annotations

from typing import Any, Optional

import torch

from trl_step.algorithms.advantages.group import normalized_advantages
from trl_step.algorithms.rewards import normalized_scores
from trl_step.core import keep
from trl_step.data.special_tokens import tokenizer_of
from trl_step.trainer.loop import LoopStep, OnPolicyTrainer
from trl_step.trainer.rloo_config import RLOOConfig


class RLOOStep(LoopStep):
    """The step of RLOO, whose advantages may be normalized."""

    def compute_advantages(
        self, values: torch.Tensor, rewards: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As in `PPOTrainer`, and normalized over all samples if `normalize_advantage` is set."""
        values, advantages, returns = super().compute_advantages(values, rewards, mask)
        if self.loop_args.normalize_advantage:
            # differs from the release: mean and deviation were those of each process
            reduce_sum = keep if self.loop_args.exact else self._processes.sum
            advantages = normalized_advantages(advantages, mask, reduce_sum)
        return values, advantages, returns


class RLOOTrainer(OnPolicyTrainer):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740), with `train()`:
    `rloo_k` answers to each prompt, each compared with the mean of the others; the ratio of whole answers is clipped.

    Args:
        config: settings; the run-time fields are filled in
        processing_class: the tokenizer
        policy: a causal language model, or a PeftModel
        ref_policy: what the KL penalty is measured against; None: the policy without its adapter, or a frozen copy
        reward_model: a model for sequence classification with one label; a function `texts -> numbers`; or one with
            the parameters `prompts` and `completions`. Functions also get the columns that they have parameters for
        train_dataset: rows with `input_ids`, a prompt's token ids
        data_collator: joins rows to a batch; None: for prompts of any length
        eval_dataset: rows for the tables of `generate_completions`
        optimizers: optimizer and scheduler; None: those that `config` asks for
        callbacks: `transformers.TrainerCallback`s
        tokenizer: the older name of `processing_class`
        args: another name of `config`

    Raises:
        ValueError, TypeError: something that cannot work; the message names the argument or the field.
    """

    algorithm = "rloo"
    step_class = RLOOStep

    def __init__(
        self,
        config: Optional[RLOOConfig] = None,
        processing_class: Any = None,
        policy: Any = None,
        ref_policy: Any = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Optional[list[Any]] = None,
        tokenizer: Any = None,
        args: Optional[RLOOConfig] = None,
    ) -> None:
        config = args if config is None else config
        if not isinstance(config, RLOOConfig):
            raise TypeError(f"config must be an RLOOConfig, got {type(config).__name__}")
        self.args = config
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
        )

    @property
    def answers(self) -> int:
        """Answers to each prompt: `rloo_k`."""
        return self.args.rloo_k

    @property
    def algorithm_settings(self) -> dict[str, Any]:
        """RLOO as settings of `PPOConfig`."""
        return {"advantage_estimator": "rloo", "policy_loss": "sequence_clip", "loss_normalization": "samples"}

    def shaped_scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B], normalized if `normalize_reward` is set."""
        if not self.args.normalize_reward:
            return scores
        # differs from the release: mean and deviation were those of each process
        reduce_sum = keep if self.args.exact else self._processes.sum
        found = normalized_scores(scores.to(self._processes.device), self.args.reward_clip_range, reduce_sum)
        return found.cpu()
