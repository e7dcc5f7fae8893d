"""The settings of `DDPOConfig` under the names that the shared parts of trainers read."""

from __future__ import annotations

from pathlib import Path

from trl_step.trainer.ddpo_config import DDPOConfig
from trl_step.trainer.ppo_config import PPOConfig

NEVER = 1e30
"""A `ratio_threshold` that no ratio exceeds: DDPO skips nothing."""


def shared_settings(config: DDPOConfig) -> PPOConfig:
    """Run, trackers, checkpoints and updates of `config`; sizes are those of a process."""
    update = config.train_batch_size * config.train_gradient_accumulation_steps
    return PPOConfig(
        exp_name=config.exp_name,
        seed=config.seed,
        log_with=config.log_with,
        model_name=None,
        tracker_kwargs=config.tracker_kwargs,
        accelerator_kwargs={"mixed_precision": config.mixed_precision, **config.accelerator_kwargs},
        project_kwargs=config.project_kwargs,
        tracker_project_name=config.tracker_project_name,
        batch_size=update,
        mini_batch_size=config.train_batch_size,
        gradient_accumulation_steps=config.train_gradient_accumulation_steps,
        ratio_threshold=NEVER,
        max_grad_norm=config.train_max_grad_norm,
        save_every=config.save_freq,
        save_dir=str(checkpoints_of(config)),
        keep_last=config.num_checkpoint_limit,
    )


def checkpoints_of(config: DDPOConfig) -> Path:
    """The folder of all checkpoints."""
    return Path(config.project_kwargs.get("project_dir") or config.logdir) / "checkpoints"
