"""Legacy import path: the code is in `trl_step.algorithms.stats`."""

from trl_step.algorithms.stats import LOGGED_ARRAYS, LOGGED_BY_LOG_STATS, PER_TOKEN, STATS, Stat, explain

__all__ = ["LOGGED_ARRAYS", "LOGGED_BY_LOG_STATS", "PER_TOKEN", "STATS", "Stat", "explain"]
