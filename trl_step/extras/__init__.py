"""Layer 5: best-of-n sampling, common rewards, and a doctor for runs."""

from trl_step.extras import doctor
from trl_step.extras.best_of_n_sampler import BestOfNSampler
from trl_step.extras.rewards import (
    ClassifierReward,
    LengthPenalty,
    MissingEosPenalty,
    PipelineReward,
    WeightedRewards,
)

__all__ = [
    "BestOfNSampler",
    "ClassifierReward",
    "LengthPenalty",
    "MissingEosPenalty",
    "PipelineReward",
    "WeightedRewards",
    "doctor",
]
