"""Floor 4: environments that a language model works in. Nothing here knows of a trainer."""

from trl_step.environment.base_environment import RewardError, StringStoppingCriteria, TextEnvironment, TextHistory

__all__ = ["RewardError", "StringStoppingCriteria", "TextEnvironment", "TextHistory"]
