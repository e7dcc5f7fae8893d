"""How queries and responses lie in the padded batch: which positions predict what, and which columns are padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from trl_step.trainer.batches.padding import counted_positions, pad_sequences, spread
from trl_step.trainer.batches.positions import Places

Inputs = Mapping[str, torch.Tensor]
Pad = Callable[[Sequence[torch.Tensor]], dict[str, torch.Tensor]]
"""Token ids, each [n_i], to `input_ids` and `attention_mask`, each [B, S] int64."""


class Trimmed(NamedTuple):
    """`inputs` without unused columns; `predicted`: the predicted positions (of T) that remain."""

    inputs: dict[str, torch.Tensor]
    predicted: slice


class Layout:
    """The layout of a trainer's batches.

    Args:
        is_encoder_decoder: queries go to the encoder and responses to the decoder, else they are joined
        pad_token_id: filler
        padding_side: "right" or "left"
        fixed_length: pad every batch to this many tokens, and never trim it
        exact_v07: release 0.7's positions: the first generated token of a decoder does not count, and a left-padded
            batch is never trimmed, as padding moved its absolute positions
    """

    def __init__(
        self,
        is_encoder_decoder: bool,
        pad_token_id: int,
        padding_side: str = "right",
        fixed_length: int | None = None,
        exact_v07: bool = False,
    ) -> None:
        self.is_encoder_decoder = is_encoder_decoder
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side
        self.fixed_length = fixed_length
        self.exact_v07 = exact_v07

    def model_inputs(
        self, queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], pad: Pad | None = None
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` (and the same with `decoder_`), each [B, S] int64; padded by `pad`, if given,
        in place of the layout's own way."""
        pad = pad or self._pad
        if self.is_encoder_decoder:
            return {**pad(queries), **{f"decoder_{key}": value for key, value in pad(responses).items()}}
        return pad([torch.cat(pair) for pair in zip(queries, responses, strict=True)])

    def _pad(self, sequences: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return pad_sequences(sequences, self.pad_token_id, self.padding_side, self.fixed_length)._asdict()

    def predicted_ids(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The ids that the model predicts one by one, and their attention mask: both [b, S]."""
        prefix = "decoder_" if self.is_encoder_decoder else ""
        return inputs[f"{prefix}input_ids"], inputs[f"{prefix}attention_mask"]

    def response_positions(
        self,
        queries: Sequence[torch.Tensor],
        responses: Sequence[torch.Tensor],
        inputs: Inputs,
        response_masks: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Mask [B, T] int64 of the positions that predict a counted response token."""
        attention_mask = self.predicted_ids(inputs)[1]
        if not self.is_encoder_decoder:
            skipped = [len(query) - 1 for query in queries]
            counted = [self.predicted_count(response) for response in responses]
            return counted_positions(attention_mask, skipped, counted, response_masks)
        if self.exact_v07:
            return _decoder_positions_of_v07(attention_mask, response_masks)
        # differs from v0.7: the first token behind the decoder's start token was left out as well
        counted = [self.predicted_count(response) for response in responses]
        if response_masks is not None:
            # entry i of a mask belongs to token i of the response, which position i - 1 predicts
            response_masks = [mask[1:] for mask in response_masks]
        return counted_positions(attention_mask, [0] * len(responses), counted, response_masks)

    def at_predicted(
        self,
        rows: torch.Tensor,
        queries: Sequence[torch.Tensor],
        responses: Sequence[torch.Tensor],
        inputs: Inputs,
    ) -> torch.Tensor:
        """Numbers of response tokens, `rows` [B, R], at the positions that predict these tokens: [B, T] float32."""
        positions = self.response_positions(queries, responses, inputs)
        predicted = [
            row[len(response) - self.predicted_count(response) : len(response)]
            for row, response in zip(rows, responses, strict=True)
        ]
        return spread(predicted, positions)

    def predicted_count(self, response: torch.Tensor) -> int:
        """Tokens of a response that the model predicts: all, or all behind the decoder's start token."""
        return len(response) - 1 if self.is_encoder_decoder else len(response)

    def may_trim(self, left_padded: bool) -> bool:
        """Whether unused columns may go without changing a number."""
        return self.fixed_length is None and not (self.exact_v07 and left_padded)

    def places(self, inputs: Inputs, masks: torch.Tensor) -> Places:
        """Where tokens stand in a batch, and which of them `masks` [B, T] counts."""
        return Places.of(masks, [inputs[f"{prefix}attention_mask"] for prefix in self._prefixes])

    @property
    def _prefixes(self) -> tuple[str, ...]:
        """Of the model's inputs, those of the predicted one last."""
        return ("", "decoder_") if self.is_encoder_decoder else ("",)

    def trim(self, inputs: Inputs, places: Places) -> Trimmed:
        """Cut off the columns that no sample of a mini-batch uses; `places` are those of its samples."""
        trimmed = dict(inputs)
        columns = slice(0, self.predicted_ids(inputs)[0].shape[1])
        if self.may_trim(places.left_padded):
            for prefix, columns in zip(self._prefixes, places.columns(), strict=True):
                for key in (f"{prefix}input_ids", f"{prefix}attention_mask"):
                    trimmed[key] = inputs[key][:, columns]
        return Trimmed(trimmed, slice(columns.start, columns.stop - 1))


def _decoder_positions_of_v07(
    attention_mask: torch.Tensor, response_masks: Sequence[torch.Tensor] | None
) -> torch.Tensor:
    """Release 0.7's mask [B, T]: from the second generated token on, counted from the left edge, padding or not."""
    positions = torch.arange(attention_mask.shape[1] - 1, device=attention_mask.device)
    inside = (positions >= 1) & (positions < attention_mask.sum(dim=1, keepdim=True) - 1)
    mask = attention_mask[:, 1:] * inside
    for i, response_mask in enumerate(response_masks or ()):
        within = min(len(response_mask), mask.shape[1])
        mask[i, :within] *= response_mask[:within]
    return mask
