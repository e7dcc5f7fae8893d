"""How long a sample may be: a model with learned positions has only so many, and would fail in the middle of a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from trl_step.models.positions import position_limits


class LengthLimits:
    """The longest samples that fit.

    Args:
        models: policy and reference, as value-head models
        is_encoder_decoder: queries and responses have their own limits, else their sum has one
        fixed_length: every batch is padded to this many tokens

    Raises:
        ValueError: `fixed_length` is more than a model takes.
    """

    def __init__(self, models: Iterable[Any], is_encoder_decoder: bool, fixed_length: int | None = None) -> None:
        self.is_encoder_decoder = is_encoder_decoder
        self.encoder: int | None = None
        self.decoder: int | None = None
        for model in models:
            limits = position_limits(model.pretrained_model)
            self.encoder, self.decoder = _least(self.encoder, limits.encoder), _least(self.decoder, limits.decoder)
        if fixed_length is not None:
            for limit in (self.encoder, self.decoder):
                if limit is not None and fixed_length > limit:
                    raise ValueError(f"pad_max_len={fixed_length} is more than the model's {limit} positions; lower it")
            self.encoder = self.decoder = fixed_length

    def check(self, queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor]) -> None:
        """Raise a `ValueError` that names the first sample that is too long."""
        for i, (query, response) in enumerate(zip(queries, responses, strict=True)):
            both = len(query) + len(response)
            sizes = [(f"queries[{i}] and responses[{i}] together", both, self.decoder)]
            if self.is_encoder_decoder:
                sizes = [(f"queries[{i}]", len(query), self.encoder), (f"responses[{i}]", len(response), self.decoder)]
            for what, length, limit in sizes:
                if limit is not None and length > limit:
                    raise ValueError(f"{what}: {length} tokens do not fit into {limit} positions; cut the sample")


def _least(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else min(one, other)
