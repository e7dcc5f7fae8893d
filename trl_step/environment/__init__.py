"""Layer 4: environments that a language model works in. They do not depend on a trainer."""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.environment.base_environment": (
        "RewardError",
        "StringStoppingCriteria",
        "TextEnvironment",
        "TextHistory",
    ),
    "trl_step.data.chat_calls": ("ParsedCall", "parse_tool_calls"),
    "trl_step.environment.chat_environment": ("ChatEnvironment",),
    "trl_step.environment.runner": ("Environment", "EnvironmentRunner", "Episodes"),
}

if TYPE_CHECKING:
    from trl_step.data.chat_calls import ParsedCall, parse_tool_calls
    from trl_step.environment.base_environment import RewardError, StringStoppingCriteria, TextEnvironment, TextHistory
    from trl_step.environment.chat_environment import ChatEnvironment
    from trl_step.environment.runner import Environment, EnvironmentRunner, Episodes
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

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
