"""The layout of a padded batch: which positions predict what, and which columns are padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from trl_step.models.shortcuts.packed_row import PackedRow
from trl_step.models.shortcuts.shared_prompts import EncodedOnce, RightPadded, Shared
from trl_step.sampling.options import padding_id
from trl_step.trainer.batches.padding import Padded, counted_positions, pad_sequences, spread
from trl_step.trainer.batches.rollout import (
    CountedPositions,
    Piece,
    Precomputed,
    Rollout,
    TokenPositions,
    upload,
)
from trl_step.trainer.batches.scores import Scores
from trl_step.trainer.batches.sharing import Line, PassSize, line_up, number_queries
from trl_step.trainer.ppo_config import PPOConfig

Inputs = Mapping[str, torch.Tensor]
Pad = Callable[[Sequence[torch.Tensor]], Padded]
"""Token ids, each [n_i], to one batch"""


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
        self._prefixes = ("", "decoder_") if is_encoder_decoder else ("",)
        """of the model's inputs, that of the predicted one last"""
        self.given_tokens = 1 if is_encoder_decoder else 0
        """of a response, that the model does not predict: the decoder's start token"""

    def model_inputs(
        self, queries: Sequence[torch.Tensor], responses: Sequence[torch.Tensor], pad: Pad | None = None
    ) -> dict[str, torch.Tensor]:
        """`input_ids`, `attention_mask` (and the same with `decoder_`), each [B, S] int64.

        Args:
            pad: pads in place of the layout's own way
        """
        if pad is None:
            pad = partial(
                pad_sequences, padding_value=self.pad_token_id, side=self.padding_side, length=self.fixed_length
            )
        if self.is_encoder_decoder:
            decoder = pad(responses)._asdict()
            return {**pad(queries)._asdict(), **{f"decoder_{key}": value for key, value in decoder.items()}}
        return pad([torch.cat(pair) for pair in zip(queries, responses, strict=True)])._asdict()

    def predicted_ids(self, inputs: Inputs) -> torch.Tensor:
        """The ids that the model predicts one by one, [b, S]."""
        return inputs[f"{self._prefixes[-1]}input_ids"]

    def batch(
        self,
        queries: list[torch.Tensor],
        responses: list[torch.Tensor],
        inputs: Inputs,
        response_masks: Sequence[torch.Tensor] | None = None,
    ) -> Rollout:
        """The batch that padded model inputs are.

        Args:
            queries, responses: what `inputs` were made of, each [Q_i] and [R_i]
            inputs: as `model_inputs` makes them
            response_masks: each [R_i], 1 where a token counts; None: all of them do
        """
        if self.exact_v07 and self.is_encoder_decoder:
            attention_mask = inputs["decoder_attention_mask"]
            mask = _decoder_positions_of_v07(attention_mask, response_masks)
        else:
            # differs from v0.7: the first token after the decoder's start token was left out as well
            if response_masks is not None and self.is_encoder_decoder:
                # entry i of a mask belongs to token i of the response, which position i - 1 predicts
                response_masks = [one[1:] for one in response_masks]
            mask = self.response_positions(queries, responses, inputs, response_masks)
        return Rollout(queries, responses, dict(inputs), self.positions(inputs, mask), mask)

    def positions(self, inputs: Inputs, mask: torch.Tensor) -> TokenPositions:
        """Which positions of a batch hold tokens, and which of them `mask` [B, T] counts."""
        return TokenPositions.of(mask, [inputs[f"{prefix}attention_mask"] for prefix in self._prefixes])

    def response_positions(
        self,
        queries: Sequence[torch.Tensor],
        responses: Sequence[torch.Tensor],
        inputs: Inputs,
        masks: Sequence[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Mask [B, T] int64 of all positions that predict a token of a response.

        Args:
            masks: what to write there instead of ones, one number per predicted token
        """
        attention_mask = inputs[f"{self._prefixes[-1]}attention_mask"]
        skipped = [0 if self.is_encoder_decoder else len(query) - 1 for query in queries]
        return counted_positions(attention_mask, skipped, [len(r) - self.given_tokens for r in responses], masks)

    def with_numbers(
        self,
        rollout: Rollout,
        scores: Scores,
        precomputed: Precomputed,
        advantages: list[torch.Tensor] | None = None,
    ) -> Rollout:
        """The batch with what was given to `step` for each sample or token: from here on nothing is a list of numbers.

        Args:
            scores: [B], or each [R_i]
            precomputed: each [R_i], one number per predicted token
            advantages: each [R_i]
        """
        known = {name: tokens for name, tokens in precomputed._asdict().items() if tokens is not None}
        if not isinstance(scores, torch.Tensor):
            known["scores"] = [vector[self.given_tokens :] for vector in scores]
        if advantages is not None:
            known["advantages"] = [vector[self.given_tokens :] for vector in advantages]
        if not known:
            return rollout._replace(scores=scores)
        positions = self.response_positions(rollout.queries, rollout.responses, rollout.inputs)
        spread_out: dict[str, Any] = {name: spread(tokens, positions) for name, tokens in known.items()}
        return rollout._replace(**{"scores": scores, **spread_out})

    def piece(self, whole: Rollout, samples: np.ndarray | None = None) -> Piece:
        """Some samples of a batch, or all of it, without the columns that none of them uses."""
        batch = whole if samples is None else whole.take(samples)
        inputs, positions, device = dict(batch.inputs), batch.positions, whole.mask.device
        columns = slice(0, self.predicted_ids(inputs).shape[1])
        if self.fixed_length is None and not (self.exact_v07 and positions.left_padded):
            for prefix, occupied in zip(self._prefixes, positions.occupied, strict=True):
                columns = slice(int(occupied[:, 0].min()), int(occupied[:, 1].max()))
                for key in (f"{prefix}input_ids", f"{prefix}attention_mask"):
                    inputs[key] = inputs[key][:, columns]
        predicted = slice(columns.start, columns.stop - 1)
        counted = CountedPositions.of(positions.counted[:, predicted], device)
        labels = self.predicted_ids(inputs).flatten().index_select(0, counted.in_inputs + 1)
        index = slice(None) if samples is None else upload(samples, device)
        shared = self._shared(batch, columns)
        return Piece(batch.narrow(inputs, predicted), counted, labels, index, predicted, columns, shared)

    def packable(self, batch: Rollout, share_queries: bool, padding_free: bool) -> Rollout:
        """The batch that may run in rows, if the model gets nothing but ids and masks.

        Args:
            share_queries: queries that repeat run once
            padding_free: padding may be left out
        """
        known = {f"{prefix}{name}" for prefix in self._prefixes for name in Padded._fields}
        if set(batch.inputs) != known or self.fixed_length is not None:
            return batch
        numbers = number_queries(batch.queries) if share_queries else None
        return batch._replace(query_numbers=numbers, padding_free=padding_free)

    def line(self, batch: Rollout) -> Line:
        """The samples of a batch in an order in which little is padding, and equal queries follow each other."""
        run_once = batch.query_numbers is not None and not self.is_encoder_decoder
        query_lengths = np.array([len(query) for query in batch.queries]) if run_once else None
        return line_up(batch.positions.lengths, batch.query_numbers, query_lengths)

    def _shared(self, batch: Rollout, columns: slice) -> Shared | None:
        """How the samples of a mini-batch in these columns run in one row, or its queries once; None if they are padded
        as they are: no query repeats and padding may not be left out, or it would not pay."""
        numbers, place = batch.query_numbers, partial(upload, device=batch.mask.device)
        if numbers is not None and len(np.unique(numbers)) == len(numbers):
            numbers = None
        if self.is_encoder_decoder:
            return None if numbers is None else EncodedOnce.of(numbers, place)
        if numbers is None and not batch.padding_free:
            return None
        size, line = PassSize(padding_free=batch.padding_free), self.line(batch)
        for length, repeated in zip(line.lengths.tolist(), line.repeated.tolist(), strict=True):
            size = size.plus(length, repeated)
        if not size.is_packed:
            as_they_are = batch.padding_free and not batch.positions.left_padded
            return RightPadded(columns.stop - columns.start) if as_they_are else None
        query_lengths = np.array([len(query) for query in batch.queries])
        numbers = np.arange(len(batch.queries)) if numbers is None else numbers
        occupied = batch.positions.occupied[-1] - columns.start
        return PackedRow.of(numbers, query_lengths, occupied, columns.stop - columns.start, place)


def make_layout(
    config: PPOConfig, tokenizer: PreTrainedTokenizerBase, is_encoder_decoder: bool, vocabulary: int
) -> Layout:
    """The layout that the settings ask for; ids from `vocabulary` on have no embedding and fill nothing."""
    filler = padding_id(tokenizer)
    return Layout(
        is_encoder_decoder,
        filler if filler < vocabulary else 0,
        # differs from v0.7: on the right whatever the tokenizer says, so that no position depends on the padding
        tokenizer.padding_side if config.exact_v07 else "right",
        config.pad_max_len if config.pad_for_acceleration else None,
        config.exact_v07,
    )


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
