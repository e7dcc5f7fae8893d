"""Layer 4: environments that a language model works in. They do not depend on a trainer."""

from trl_step.environment.base_environment import RewardError, StringStoppingCriteria, TextEnvironment, TextHistory
from trl_step.environment.chat_calls import ParsedCall, parse_tool_calls
from trl_step.environment.chat_environment import ChatEnvironment
from trl_step.environment.runner import Environment, EnvironmentRunner, Episodes

__all__ = [
    "ChatEnvironment",
    "Environment",
    "EnvironmentRunner",
    "Episodes",
    "ParsedCall",
    "RewardError",
    "StringStoppingCriteria",
    "TextEnvironment",
    "TextHistory",
    "parse_tool_calls",
]
