"""The transformers model inside a PeftModel, and its parts, from the model's own accessors instead of names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from torch import nn

from trl_step.private_names import attention_kernel

FLASH_KERNELS = ("flash_attention_2", "flash_attention_3")
"""transformers' names of the attention functions that no CPU has, and that take no mask"""


def is_peft_model(model: Any) -> bool:
    """Whether `model` is a PeftModel; does not import peft."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def has_adapter(model: nn.Module) -> bool:
    """Whether adapter layers are in `model`, with a PeftModel around it or without one; does not import peft."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return any(isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)) for module in model.modules())


def pretrained_of(model: Any) -> Any:
    """The transformers model, or the PeftModel around one, inside a wrapper of this package; other models unchanged."""
    return getattr(model, "pretrained_model", model)


def plain_model(model: nn.Module) -> Any:
    """The transformers model inside `model`, which may be a PeftModel."""
    return model.get_base_model() if is_peft_model(model) else model


def spans_devices(model: nn.Module) -> bool:
    """Whether a device map put the layers of `model` on several devices."""
    places = getattr(plain_model(model), "hf_device_map", None) or {}
    return len({str(place) for place in places.values()}) > 1


def waits_for_device(model: nn.Module) -> bool:
    """Whether a model cannot run yet: it has flash attention, and its weights are still on the host."""
    return attention_kernel(plain_model(model)) in FLASH_KERNELS and on_host(model)


def on_host(model: nn.Module) -> bool:
    """Whether all weights are in the memory of the CPU."""
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def output_embedding(model: nn.Module) -> nn.Module:
    """The module that turns hidden states into logits, according to the model itself.

    Raises:
        ValueError: the model has none, or names its input embedding and has no single linear layer of its shape.
    """
    base = plain_model(model)
    embedding = base.get_output_embeddings()
    if isinstance(embedding, nn.Embedding):  # FSMT: the layer with the embedding's weight is inside of its decoder
        shape = embedding.weight.shape
        heads = [part for part in base.modules() if isinstance(part, nn.Linear) and part.weight.shape == shape]
        if len(heads) == 1:
            return heads[0]
        raise ValueError(
            f"{type(base).__name__} names its input embedding as its output embedding: its get_output_embeddings() is "
            f"looked up with token ids, and it has {len(heads)} linear layers of that shape, so the hidden states that "
            "become logits cannot be read. Take another model"
        )
    if embedding is None:
        raise ValueError(
            f"{type(base).__name__} has no language model head: its get_output_embeddings() is None. Load the model "
            "with a class that has one, such as AutoModelForCausalLM."
        )
    return embedding


def head_in_decoder(model: nn.Module) -> nn.Module | None:
    """The output embedding, if the decoder itself applies it (FSMT), so that what it returns is logits; else None."""
    embedding, decoder = plain_model(model).get_output_embeddings(), decoder_backbone(model)
    if not isinstance(embedding, nn.Embedding) or decoder is None:
        return None
    head = output_embedding(model)
    return head if any(part is head for part in decoder.modules()) else None


def decoder_backbone(model: nn.Module) -> nn.Module | None:
    """The module whose output is the decoder's last hidden state, or None if the model does not name one."""
    base = plain_model(model)
    decoder = _own_decoder(base)
    # the decoder of an EncoderDecoderModel is a whole language model
    while decoder is not base and decoder.get_output_embeddings() is not None:
        base, decoder = decoder, _own_decoder(decoder)
    return None if decoder is base else decoder


def _own_decoder(base: Any) -> Any:
    """`base.get_decoder()`; some models call their output embedding "decoder", and theirs is the base model."""
    decoder = base.get_decoder()
    return decoder if hasattr(decoder, "get_output_embeddings") else base.base_model


def vocabulary_size(model: nn.Module) -> int | None:
    """Rows of the input embedding, in an adapter or not; None if `model` is no model of transformers."""
    find = getattr(plain_model(model), "get_input_embeddings", None)
    if find is None:
        return None
    embedding: Any = find()
    while not hasattr(embedding, "num_embeddings"):
        inner = getattr(embedding, "base_layer", None) or getattr(embedding, "original_module", None)
        if inner is None:
            return int(embedding.weight.shape[0])
        embedding = inner
    return int(embedding.num_embeddings)


def takes_argument(model: nn.Module, name: str) -> bool:
    """Whether the forward of the transformers model inside `model` has an argument `name`."""
    return name in inspect.signature(plain_model(model).forward).parameters


def generation_arguments(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, for the `generate` of `model`, without the logits of a router of experts if its configuration asks for
    them: their loss counts prompts and padding by the attention mask, which does not fit the new tokens alone."""
    config = getattr(plain_model(model), "config", None)
    asks = config is not None and getattr(config.get_text_config(decoder=True), "output_router_logits", False)
    if not asks or not takes_argument(model, "output_router_logits"):
        return dict(given)
    return {"output_router_logits": False, **given}
