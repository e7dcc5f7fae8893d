"""`ServeSettings`: how an endpoint is reached, and what it allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

EPISODE_HEADER = "X-Session-ID"
"""Header with the id of a request's episode, for clients with one URL for all of them."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings of `serve`.

    Raises:
        ValueError: a number is out of range; the message names the field.
    """

    host: str = "127.0.0.1"
    """address to listen on. Another than the loopback address opens the endpoint to other machines, without
    encryption: whoever reads the traffic has the token"""
    port: int = 0
    """0 takes a free one"""
    model_name: str = "policy"
    """the name that clients give as `model`"""
    max_new_tokens: int = 512
    """tokens of an answer if the client gives no `max_tokens`"""
    max_length: Optional[int] = None
    """tokens of prompt and answer together; a prompt that leaves no room is refused. None: as the sampler allows"""
    temperature: float = 1.0
    """if the client gives none; `serve` takes the trainer's"""
    top_p: float = 1.0
    """if the client gives none"""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """further variables of the chat template, such as `enable_thinking`"""
    batch_wait: float = 0.005
    """seconds that a request waits for others to be sampled with"""
    max_body: int = 4 * 2**20
    """bytes of a request"""
    max_waiting: int = 256
    """prompts that wait to be sampled; further requests are answered with 429, which clients try again"""
    max_kept: int = 4096
    """recorded sequences that are kept until `episodes` takes them; beyond, the oldest episode is dropped with a
    warning. 0 records nothing"""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("batch_wait", 0), ("max_body", 1), ("max_waiting", 1),
                            ("max_kept", 0), ("port", 0), ("temperature", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length={self.max_length} must be at least 2: a token of the prompt and a new one")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1")
