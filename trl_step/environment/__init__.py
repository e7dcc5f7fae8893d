"""Layer 4: environments that a language model works in. They do not depend on a trainer."""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.data.chat_calls": (
        "ParsedCall",
        "parse_tool_calls",
    ),
    "trl_step.environment.base_environment": (
        "RewardError",
        "StringStoppingCriteria",
        "TextEnvironment",
        "TextHistory",
    ),
    "trl_step.environment.chat_environment": ("ChatEnvironment",),
    "trl_step.environment.check": ("check_environment",),
    "trl_step.environment.episodes": ("Episodes",),
    "trl_step.environment.game_runner": (
        "Game",
        "GameRunner",
    ),
    "trl_step.environment.protocol": (
        "Environment",
        "UnreadableAction",
    ),
    "trl_step.environment.runner": ("EnvironmentRunner",),
}

if TYPE_CHECKING:
    from trl_step.data.chat_calls import ParsedCall, parse_tool_calls
    from trl_step.environment.base_environment import RewardError, StringStoppingCriteria, TextEnvironment, TextHistory
    from trl_step.environment.chat_environment import ChatEnvironment
    from trl_step.environment.check import check_environment
    from trl_step.environment.episodes import Episodes
    from trl_step.environment.game_runner import Game, GameRunner
    from trl_step.environment.protocol import Environment, UnreadableAction
    from trl_step.environment.runner import EnvironmentRunner
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

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
