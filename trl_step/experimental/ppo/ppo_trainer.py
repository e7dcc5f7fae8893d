"""`PPOTrainer` of TRL 0.12 to 1.9."""

from __future__ import annotations

from typing import Any, Optional

from trl_step.data.special_tokens import tokenizer_of
from trl_step.experimental.ppo.ppo_config import PPOConfig
from trl_step.trainer.ppov2_trainer import PPOv2Trainer


class PPOTrainer(PPOv2Trainer):
    """PPO with `train()`, with the arguments of TRL 0.12 to 1.9; see `PPOv2Trainer`.

    Args:
        args: settings; the run-time fields are filled in
        processing_class: the tokenizer
        model: the policy
        ref_model: the reference, or None
        reward_model, train_dataset, value_model, data_collator, eval_dataset, optimizers, callbacks, peft_config: as in
            `PPOv2Trainer`
        config, tokenizer, policy, ref_policy: the names of `args`, `processing_class`, `model` and `ref_model` in 0.12

    Raises:
        ValueError, TypeError: something that cannot work; the message names the argument or the field.
    """

    def __init__(
        self,
        args: Optional[PPOConfig] = None,
        processing_class: Any = None,
        model: Any = None,
        ref_model: Any = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: Any = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: Optional[list[Any]] = None,
        peft_config: Any = None,
        config: Optional[PPOConfig] = None,
        tokenizer: Any = None,
        policy: Any = None,
        ref_policy: Any = None,
    ) -> None:
        super().__init__(
            args or config,
            tokenizer_of(tokenizer, processing_class),
            policy if model is None else model,
            ref_policy if ref_model is None else ref_model,
            reward_model,
            train_dataset,
            value_model,
            data_collator,
            eval_dataset,
            optimizers,
            callbacks,
            peft_config=peft_config,
        )
