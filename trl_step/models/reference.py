"""The frozen copy of a policy, the reference of the KL penalty."""

from __future__ import annotations

import copy
import re
from typing import TypeVar

from torch import nn

from trl_step.models.inner_model import decoder_backbone, plain_model, pretrained_of
from trl_step.models.sharding import is_sharded

LAYER_PATTERNS = (
    "transformer.h.{layer}",
    "model.decoder.layers.{layer}",
    "gpt_neox.layers.{layer}",
    "model.layers.{layer}",
    "language_model.layers.{layer}",
    "decoder.block.{layer}",
)
"""Names of the decoder's layers; the first one that the model has is used."""

Model = TypeVar("Model", bound=nn.Module)


def create_reference_model(model: Model, num_shared_layers: int | None = None, pattern: str | None = None) -> Model:
    """A frozen copy of `model` in eval mode.

    Args:
        model: the policy.
        num_shared_layers: everything before decoder layer number `num_shared_layers` (counted from 0: embeddings, an
            encoder, the earlier layers) is the same tensor in both models, and frozen in both. None shares nothing.
        pattern: the parameter name of a layer with `{layer}` for its number, such as "transformer.h.{layer}", for
            models whose layers have other names than those in `LAYER_PATTERNS`.

    Raises:
        ValueError: no parameter matches the pattern; FSDP or DeepSpeed ZeRO-3 has already sharded the weights.
    """
    if is_sharded(model):
        raise ValueError(
            "create_reference_model cannot copy a model whose weights are sharded over processes (FSDP, DeepSpeed "
            "ZeRO-3). Call it before the trainer is built, or load the reference with from_pretrained"
        )
    shared = [] if num_shared_layers is None else _parameters_before(model, num_shared_layers, pattern)
    # a memo that already has the shared parameters: the copy gets the same objects, tied weights included
    # differs from v0.7: the shared layers were copied too
    reference = copy.deepcopy(model, {id(parameter): parameter for parameter in shared})
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference.eval()


def _parameters_before(model: nn.Module, layer: int, pattern: str | None) -> list[nn.Parameter]:
    named = list(model.named_parameters())
    patterns = LAYER_PATTERNS if pattern is None else (pattern,)
    for candidate in patterns:
        name_of_layer = re.compile(r"(^|\.)" + re.escape(candidate.format(layer=layer).strip(".")) + r"(\.|$)")
        for position, (name, _) in enumerate(named):
            if name_of_layer.search(name):
                return [parameter for _, parameter in named[:position]]
    own = _layer_name(model, layer) if pattern is None else None
    if own is not None:
        position = next(i for i, (name, _) in enumerate(named) if name.startswith(own))
        return [parameter for _, parameter in named[:position]]
    # differs from v0.7: if the caller's pattern matched nothing, the whole model was shared and so frozen
    raise ValueError(
        f"no parameter of {type(model).__name__} belongs to layer {layer} under {', '.join(patterns)}: call "
        "create_reference_model(model, num_shared_layers=..., pattern=...) with the name of a layer and {layer} for "
        f"its number, and pass the result as ref_model. A parameter of this model: {named[-1][0]}"
    )


def _layer_name(model: nn.Module, layer: int) -> str | None:
    """The beginning of the parameter names of a decoder layer: the one list that is as long as the model is deep."""
    inner = pretrained_of(model)
    if not hasattr(plain_model(inner), "get_decoder"):
        return None
    backbone = decoder_backbone(inner) or plain_model(inner)
    count = getattr(plain_model(inner).config.get_text_config(decoder=True), "num_hidden_layers", None)
    lists = [m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == count and 0 <= layer < len(m)]
    if len(lists) != 1:
        return None
    return next((f"{name}." for name, module in model.named_modules() if module is lists[0][layer]), None)
