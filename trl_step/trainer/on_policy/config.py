"""`OnPolicyConfig`: what the settings of RLOO and of PPO with `train()` share, on top of `TrainingArguments`."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

from trl_step.models.notices import warn_user
from trl_step.trainer.text.training_arguments import TrainingArguments, own_fields

RUN_TIME = (
    "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "batch_size", "local_mini_batch_size",
    "mini_batch_size",
)  # fmt: skip
"""Filled in by the trainer, whatever is given."""
OF_EARLY_RELEASES = {
    "non_eos_penalty": "set missing_eos_penalty, which is subtracted from the score of an answer without an end token",
    "sanity_check": "give a small train_dataset and total_episodes instead",
}
"""Fields of 0.9 and 0.10 that nothing here does, and what to set instead."""
DROPPED = ("penalty_reward_value", "base_model", "num_updates")
"""Fields of 0.9 and 0.10 that have no effect by themselves."""
COUNTS = (
    "num_mini_batches", "local_rollout_forward_batch_size", "response_length", "num_ppo_epochs",
    "per_device_train_batch_size", "gradient_accumulation_steps",
)  # fmt: skip
"""Whole numbers from 1."""
NOT_NEGATIVE = ("kl_coef", "cliprange")


def script_name() -> str:
    """That of the running script, without its ending."""
    return os.path.basename(sys.argv[0]).removesuffix(".py")


@dataclass(init=False)
class OnPolicyConfig(TrainingArguments):
    """`TrainingArguments` (old names work too) and what sampling, scoring and the updates of a batch need.

    A batch has `per_device_train_batch_size * gradient_accumulation_steps * num_mini_batches` answers on each process,
    and an update is made after every `per_device_train_batch_size * gradient_accumulation_steps` of them. Numbers that
    do not divide are no error: what is last is smaller.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields below, and the other arguments of `transformers.TrainingArguments`

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
    """

    exp_name: str = field(default_factory=script_name)
    """name of the experiment, for `run_name`; the running script's by default"""
    reward_model_path: str = "EleutherAI/pythia-160m"
    """name or folder of the reward model, for scripts"""
    sft_model_path: str = "EleutherAI/pythia-160m"
    """name or folder of the model that training starts from, for scripts"""
    dataset_num_proc: Optional[int] = None
    """processes for preparing a data set, for scripts"""
    num_mini_batches: int = 1
    """updates that a batch is cut into"""
    total_episodes: Optional[int] = None
    """answers to train on, over all processes; None: `num_train_epochs` times the rows of the data set"""
    local_rollout_forward_batch_size: int = 64
    """answers that are drawn, and scored by a model, together"""
    num_sample_generations: int = 10
    """number of tables of answers to `eval_dataset` that are shown over the run; 0: none"""
    response_length: int = 53
    """most tokens of an answer"""
    stop_token: Optional[Literal["eos"]] = None
    """"eos": the tokenizer's end token ends an answer, which it does in any case unless `exact` is set"""
    stop_token_id: Optional[int] = None
    """another token that ends an answer"""
    temperature: float = 0.7
    """of sampling; every log-prob is taken under it"""
    missing_eos_penalty: Optional[float] = None
    """subtracted from the score of an answer that did not come to its end"""
    num_ppo_epochs: int = 4
    """passes over a batch"""
    whiten_rewards: bool = False
    """scale the rewards of tokens to unit variance"""
    kl_coef: float = 0.05
    """weight of the KL penalty, reward per nat"""
    cliprange: float = 0.2
    """the ratio is clipped to 1 ± this"""
    ds3_gather_for_generation: bool = True
    """accepted, without effect: sharded weights are always gathered to sample"""
    exact: bool = False
    """reproduce the updates of the release whose name the trainer has, its known quirks included, from the same
    answers"""
    num_total_batches: Optional[int] = None
    """steps of the run; set by the trainer"""
    micro_batch_size: Optional[int] = None
    """answers of a forward and backward pass, over all processes; set by the trainer"""
    local_batch_size: Optional[int] = None
    """answers of a step on a process; set by the trainer"""
    batch_size: Optional[int] = None
    """answers of a step over all processes; set by the trainer"""
    local_mini_batch_size: Optional[int] = None
    """answers of an update on a process; set by the trainer"""
    mini_batch_size: Optional[int] = None
    """answers of an update over all processes; set by the trainer"""

    non_eos_penalty = sanity_check = False  # no fields: the examples of TRL 0.9 read them

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        for name, advice in OF_EARLY_RELEASES.items():
            if arguments.pop(name, None):
                raise ValueError(f"{name} is a field of TRL 0.9 and 0.10 that is not here: {advice}")
        for name in (*RUN_TIME, *DROPPED):
            arguments.pop(name, None)
        for name, default in own_fields(type(self)).items():
            setattr(self, name, arguments.pop(name, default))
        super().__init__(output_dir=output_dir, **arguments)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check()

    def check(self) -> None:
        """Raise a ValueError for a value that is out of range."""
        for name in COUNTS:
            self._check(name, isinstance(getattr(self, name), int) and getattr(self, name) >= 1, "a whole number >= 1")
        for name in NOT_NEGATIVE:
            self._check(name, self._is_number(name) and getattr(self, name) >= 0, "a finite number >= 0")
        self._check("temperature", self._is_number("temperature") and self.temperature > 0, "a finite number > 0")
        if self.total_episodes is not None:
            self._check("total_episodes", self.total_episodes >= 1, "None or a whole number >= 1")
        if self.missing_eos_penalty is not None:
            self._check("missing_eos_penalty", self._is_number("missing_eos_penalty"), "None or a finite number")
        self._check("num_sample_generations", self.num_sample_generations >= 0, "a whole number >= 0")
        self._check("stop_token", self.stop_token in (None, "eos"), "None or 'eos'")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError(f"stop_token={self.stop_token!r} and stop_token_id={self.stop_token_id}: give one of them")
        if not self.ds3_gather_for_generation:
            warn_user("ds3_gather_for_generation=False has no effect: sharded weights are gathered to sample")

    def _is_number(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

    def _check(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name}={getattr(self, name)!r} must be {allowed}")

    def take_sizes(self, processes: int) -> None:
        """Fill in the run-time fields; `processes` is their number."""
        self.local_mini_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        self.local_batch_size = self.local_mini_batch_size * self.num_mini_batches
        self.micro_batch_size = self.per_device_train_batch_size * processes
        self.mini_batch_size = self.local_mini_batch_size * processes
        self.batch_size = self.local_batch_size * processes

    @property
    def step_settings(self) -> dict[str, Any]:
        """The same settings as those of the step API's `PPOConfig`; the sizes must be known."""
        local, update = self.local_batch_size or 1, self.local_mini_batch_size or 1
        micro = min(self.per_device_train_batch_size, update)
        mixed = {"mixed_precision": "bf16" if self.bf16 else "fp16"} if self.bf16 or self.fp16 else {}
        return {
            "seed": self.seed,
            "learning_rate": self.learning_rate,
            "adap_kl_ctrl": False,
            "init_kl_coef": self.kl_coef,
            "cliprange": self.cliprange,
            "whiten_rewards": self.whiten_rewards,
            "ppo_epochs": self.num_ppo_epochs,
            "mini_batch_size": micro,
            "gradient_accumulation_steps": math.ceil(update / micro),
            "batch_size": math.ceil(local / update) * math.ceil(update / micro) * micro,
            "temperature": self.temperature,
            # differs from the release: it left max_grad_norm without effect
            "max_grad_norm": None if self.exact or not self.max_grad_norm else self.max_grad_norm,
            "ratio_threshold": 1e30,
            "gradient_checkpointing": self.gradient_checkpointing,
            "remove_unused_columns": False,
            "accelerator_kwargs": {**({"cpu": True} if self.use_cpu else {}), **mixed},
        }
