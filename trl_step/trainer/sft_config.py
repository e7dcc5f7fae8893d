"""Legacy import path of `SFTConfig`."""

from trl_step.trainer.text.configs import SFTConfig

__all__ = ["SFTConfig"]
