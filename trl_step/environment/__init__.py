"""Layer 4: environments that a language model works in. They do not depend on a trainer."""

from trl_step.environment.base_environment import RewardError, StringStoppingCriteria, TextEnvironment, TextHistory
from trl_step.environment.chat_calls import ParsedCall, parse_tool_calls
from trl_step.environment.chat_environment import ChatEnvironment
from trl_step.environment.check import check_environment
from trl_step.environment.episodes import Episodes
from trl_step.environment.game_runner import Game, GameRunner
from trl_step.environment.protocol import Environment, UnreadableAction
from trl_step.environment.runner import EnvironmentRunner

__all__ = [
    "ChatEnvironment",
    "Environment",
    "EnvironmentRunner",
    "Episodes",
    "Game",
    "GameRunner",
    "ParsedCall",
    "RewardError",
    "StringStoppingCriteria",
    "TextEnvironment",
    "TextHistory",
    "UnreadableAction",
    "check_environment",
    "parse_tool_calls",
]
