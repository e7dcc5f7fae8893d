"""Environments of other packages, in the form of `GameRunner` and `EnvironmentRunner`; each needs its package."""

from trl_step.environment.adapters.openenv import OpenEnvironment
from trl_step.environment.adapters.pettingzoo import PettingZooGame
from trl_step.environment.adapters.textarena import TextArenaGame
from trl_step.environment.adapters.verifiers import VerifiersEpisodes, VerifiersRunner

__all__ = ["OpenEnvironment", "PettingZooGame", "TextArenaGame", "VerifiersEpisodes", "VerifiersRunner"]
