"""Layer 5: best-of-n sampling, common rewards, and a doctor for runs."""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.extras.best_of_n_sampler": ("BestOfNSampler",),
    "trl_step.extras.rewards": (
        "ClassifierReward",
        "LengthPenalty",
        "MissingEosPenalty",
        "PipelineReward",
        "WeightedRewards",
    ),
}

if TYPE_CHECKING:
    from trl_step.extras import doctor
    from trl_step.extras.best_of_n_sampler import BestOfNSampler
    from trl_step.extras.rewards import (
        ClassifierReward,
        LengthPenalty,
        MissingEosPenalty,
        PipelineReward,
        WeightedRewards,
    )
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

__all__ = [
    "BestOfNSampler",
    "ClassifierReward",
    "LengthPenalty",
    "MissingEosPenalty",
    "PipelineReward",
    "WeightedRewards",
    "doctor",
]
