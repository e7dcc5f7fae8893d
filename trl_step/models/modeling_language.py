"""A language model as a policy: its forward pass at chosen positions, with or without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trl_step.models.decoder_pass import HeadFunction, run_decoder
from trl_step.models.inner_model import output_embedding, plain_model, takes_argument
from trl_step.models.modeling_base import PreTrainedModelWrapper


class LanguageModelWrapper(PreTrainedModelWrapper):
    """A language model whose forward pass gives logits, loss and, in subclasses, values.

    Args:
        pretrained_model: a transformers model with a language model head, or a PeftModel around one.

    Raises:
        ValueError: the model has no language model head.
    """

    supported_args: tuple[str, ...] | None = ()
    supported_modules: tuple[str, ...] = ()

    def __init__(self, pretrained_model: Any, **kwargs: Any) -> None:
        super().__init__(pretrained_model, **kwargs)
        output_embedding(pretrained_model)  # raises if there is none

    def _values(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Values [...] of the decoder's last hidden states [..., D], if there are any."""
        return None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        return_past_key_values: bool = False,
        *,
        rows: torch.Tensor | None = None,
        head: HeadFunction | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Logits, loss and values; with `return_past_key_values`, also the cache.

        S are the positions of the decoder, N is the number of chosen rows.

        Args:
            input_ids: int64 [B, S]; the encoder's for an encoder-decoder model.
            past_key_values: cache of earlier positions.
            attention_mask: [B, S], 1 where a token counts.
            return_past_key_values: return the cache as well.
            rows: bool [B, S], or int64 [N] positions in the flattened [B, S]; only these reach the output embedding,
                in row-major order.
            head: called inside the forward pass with the chosen rows [N, D], as they enter the output embedding, and
                the output embedding; its result replaces the logits, which are then not computed.
            **kwargs: further arguments of the wrapped model, such as `decoder_input_ids`, `position_ids`, `labels`.

        Returns:
            logits: float32 [B, S, V], with `rows` [N, V], with `head` its result.
            loss: 0-d if `labels` are given, else None.
            values: float32 [B, S], with `rows` [N]; None of a model without a value head.

        Raises:
            ValueError: see `decoder_pass.run_decoder`.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        # prompt learning has its own cache
        takes_cache = not (self.is_peft_model and self.pretrained_model.active_peft_config.is_prompt_learning)
        if past_key_values is not None and takes_cache:
            inputs["past_key_values"] = past_key_values
        # an unused cache costs a copy of every key and value
        reads_cache = past_key_values is not None or return_past_key_values
        if not reads_cache and takes_argument(self.pretrained_model, "use_cache"):
            inputs.setdefault("use_cache", False)
        output = run_decoder(self.pretrained_model, inputs, rows, head)
        values, logits = self._values(output.hidden), output.logits
        if head is None and logits.dtype.itemsize < torch.float32.itemsize:
            logits = logits.float()
        result = (logits, output.loss, values)
        return (*result, output.past_key_values) if return_past_key_values else result

    def post_init(self, *args: Any, **kwargs: Any) -> None:
        """Follow a device map.

        Raises:
            ValueError: the model is offloaded to CPU or disk.
        """
        self._follow_device_map()

    def _follow_device_map(self) -> None:
        device_map = getattr(self.pretrained_model, "hf_device_map", None)
        if not device_map:
            return
        places = set(device_map.values())
        if "disk" in places or ("cpu" in places and len(places) > 1):
            raise ValueError(f"layers are offloaded to CPU or disk ({device_map}): they cannot be trained there")
        # values, logits and the loss are combined on the device of the output embedding
        device = next(output_embedding(self.pretrained_model).parameters()).device
        for name in self.supported_modules:
            getattr(self, name).to(device)

        def gather(_module: nn.Module, _arguments: Any, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(x.to(device) if isinstance(x, torch.Tensor) else x for x in outputs)

        self.register_forward_hook(gather)
        self.is_sequential_parallel = True


class PlainPolicy(LanguageModelWrapper):
    """A language model as it is, for advantages that need no values. Arguments and errors: `LanguageModelWrapper`."""

    def __init__(self, pretrained_model: Any) -> None:
        super().__init__(pretrained_model)
        self.is_encoder_decoder = bool(plain_model(pretrained_model).config.is_encoder_decoder)
        self.post_init()
