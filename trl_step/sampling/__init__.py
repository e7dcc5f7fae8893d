"""Layer 3: samples responses."""

from trl_step.sampling.local import LocalSampler
from trl_step.sampling.sampler import Sampler, Samples, Weights, repeated

__all__ = ["LocalSampler", "Sampler", "Samples", "Weights", "repeated"]
