"""An endpoint for agents: OpenAI's API over a sampler, with a record of every token."""

from trl_step.sampling.endpoint.recording import ServedEpisodes
from trl_step.sampling.endpoint.server import Endpoint, serve
from trl_step.sampling.endpoint.settings import ServeSettings

__all__ = ["Endpoint", "ServeSettings", "ServedEpisodes", "serve"]
