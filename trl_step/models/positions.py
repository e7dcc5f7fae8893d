"""How many learned positions a model has: beyond them its tables end, in an error or, on a GPU, in an assert."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel

from trl_step.models.inner_model import decoder_backbone, plain_model

_TABLES = frozenset(("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed"))
"""What transformers calls tables of learned positions."""


class PositionLimits(NamedTuple):
    """The numbers of tokens that fit; None: any."""

    encoder: int | None
    """of an encoder-decoder model's queries"""
    decoder: int | None
    """of its responses, or of query and response together"""


def position_limits(model: nn.Module) -> PositionLimits:
    """The limits of a transformers model, or of a PeftModel around one; a tower for images or sound sets none."""
    base = plain_model(model)
    if base.config.is_encoder_decoder:
        encoder = learned_positions(base.get_encoder(), _towers(base))
        return PositionLimits(encoder, learned_positions(base.get_decoder()))
    return PositionLimits(None, learned_positions(decoder_backbone(model) or base, _towers(base)))


def learned_positions(part: nn.Module, other_parts: frozenset[nn.Module] = frozenset()) -> int | None:
    """The number of positions that a model, an encoder or a decoder has learned; None if any length goes.

    Args:
        other_parts: modules whose tables do not count.
    """
    tables = [
        module
        for name, module in part.named_modules()
        if isinstance(module, nn.Embedding) and not _TABLES.isdisjoint(name.split(".")) and module not in other_parts
    ]
    return min(map(_usable_rows, tables), default=None)


def _towers(base: Any) -> frozenset[nn.Module]:
    """All modules of the towers for images and sound."""
    text = {base, base.base_model, base.get_encoder(), base.get_decoder()}
    named = {base.get_encoder(modality=modality) for modality in ("image", "audio")}
    # some have a name of their own, or are inside the encoder of the text
    nested = {m for m in base.modules() if isinstance(m, PreTrainedModel) and m.main_input_name != "input_ids"}
    return frozenset(module for tower in (named | nested) - text if tower is not None for module in tower.modules())


def _usable_rows(table: nn.Embedding) -> int:
    """OPT and BART leave their first rows out, RoBERTa those up to the padding id."""
    first: Any = getattr(table, "offset", None)
    if first is None:
        first = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - int(first)
