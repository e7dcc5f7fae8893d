"""Layer 3: samples responses."""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.sampling.continuous": ("ContinuousBatchingSampler",),
    "trl_step.sampling.endpoint.recording": ("ServedEpisodes",),
    "trl_step.sampling.endpoint.server": (
        "Endpoint",
        "serve",
    ),
    "trl_step.sampling.endpoint.settings": ("ServeSettings",),
    "trl_step.sampling.http": ("ServerError",),
    "trl_step.sampling.local": ("LocalSampler",),
    "trl_step.sampling.sampler": (
        "Sampler",
        "Samples",
        "Weights",
        "repeated",
    ),
    "trl_step.sampling.sglang": ("SGLangSampler",),
    "trl_step.sampling.vllm": ("VLLMSampler",),
}

if TYPE_CHECKING:
    from trl_step.sampling.continuous import ContinuousBatchingSampler
    from trl_step.sampling.endpoint.recording import ServedEpisodes
    from trl_step.sampling.endpoint.server import Endpoint, serve
    from trl_step.sampling.endpoint.settings import ServeSettings
    from trl_step.sampling.http import ServerError
    from trl_step.sampling.local import LocalSampler
    from trl_step.sampling.sampler import Sampler, Samples, Weights, repeated
    from trl_step.sampling.sglang import SGLangSampler
    from trl_step.sampling.vllm import VLLMSampler
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

__all__ = [
    "ContinuousBatchingSampler",
    "Endpoint",
    "LocalSampler",
    "SGLangSampler",
    "Sampler",
    "Samples",
    "ServeSettings",
    "ServedEpisodes",
    "ServerError",
    "VLLMSampler",
    "Weights",
    "repeated",
    "serve",
]
