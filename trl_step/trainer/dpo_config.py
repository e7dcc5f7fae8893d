"""Legacy import path of `DPOConfig`."""

from trl_step.trainer.text.configs import DPOConfig

__all__ = ["DPOConfig"]
