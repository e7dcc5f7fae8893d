"""Batches of the trainers: padding, and the labels that select the tokens of a loss."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import DataCollatorForLanguageModeling

from trl_step.models.notices import warn_user

PAIR_COLUMNS = ("input_ids_chosen", "attention_mask_chosen", "input_ids_rejected", "attention_mask_rejected")


def pad_to_length(tensor: torch.Tensor, length: int, pad_value: int | float, dim: int = -1) -> torch.Tensor:
    """`tensor` padded at the end of `dim` to `length` entries; a longer one is returned unchanged.

    Args:
        tensor: any shape and dtype.
        length: entries of `dim`.
        pad_value: the filler.
    """
    missing = length - tensor.size(dim)
    if missing <= 0:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat((tensor, tensor.new_full(shape, pad_value)), dim=dim)


def side_of_the_class(tokenizer: Any) -> str:
    """ "left" or "right": the default padding side of the tokenizer's class, whatever it is set to for generation.

    A classifier needs no left padding, which shifts the absolute positions of models such as GPT-2. XLNet, whose class
    pads on the left, reads its last column.
    """
    return getattr(type(tokenizer), "padding_side", "right")


def padding_on_the_right(tokenizer: Any) -> Any:
    """`tokenizer`, or a copy that pads on the right: for texts that a causal model is trained on.

    Left padding shifts absolute positions, and the loss would count the first token of a text, predicted from padding.
    """
    if tokenizer.padding_side == "right":
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer


# --- language modeling ---------------------------------------------------------------------------------------


class DataCollatorForTexts(DataCollatorForLanguageModeling):
    """`transformers.DataCollatorForLanguageModeling` whose labels leave out the padding alone.

    There every token with the id of the padding is left out: with `pad_token = eos_token` the end of a text is never
    trained, and answers do not end.
    """

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """A padded batch: `input_ids`, `attention_mask`, `labels`, int64 [B, T]."""
        batch: dict[str, Any] = super().torch_call(examples)
        if self.mlm:
            return batch
        pad, labels = self.tokenizer.pad_token_id, batch["input_ids"].clone()
        # differs from v0.7: end tokens of the text count where they pad as well
        for row, (ids, example) in enumerate(zip(labels, examples, strict=True)):
            has_mask = isinstance(example, Mapping) and "attention_mask" in example
            if has_mask:
                ids[batch["attention_mask"][row] == 0] = -100
                continue
            length = len(example["input_ids"] if isinstance(example, Mapping) else example)
            padding = slice(length, None) if self.tokenizer.padding_side == "right" else slice(len(ids) - length)
            ids[padding] = -100
            if pad is not None and pad != self.tokenizer.eos_token_id:
                ids[ids == pad] = -100  # rows that are padded already
        batch["labels"] = labels
        return batch


# --- completions only ----------------------------------------------------------------------------------------


class DataCollatorForCompletionOnlyLM(DataCollatorForTexts):
    """Batches for language modeling whose labels cover only the responses.

    With `response_template` alone everything up to the end of its last occurrence is ignored. With
    `instruction_template` as well, a text is a conversation: everything from an instruction template to the end of the
    next response template is ignored, however many of either follow each other, and so are the response templates.

    Args:
        response_template: the text that a response begins with, such as "### Answer:", or its token ids [N] if the
            tokenizer encodes it differently inside a text.
        instruction_template: the text that a user's turn begins with, or its token ids [N].
        args, kwargs: of `transformers.DataCollatorForLanguageModeling`, including `tokenizer`.
        mlm: masked language modeling; normally False for this class.
        ignore_index: the label that the loss ignores.

    Raises:
        ValueError: a template has no tokens.
    """

    def __init__(
        self,
        response_template: str | list[int],
        instruction_template: str | list[int] | None = None,
        *args: Any,
        mlm: bool = False,
        ignore_index: int = -100,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, mlm=mlm, **kwargs)
        self.response_template = response_template
        self.instruction_template = instruction_template
        self.response_token_ids = self._ids_of(response_template)
        self.instruction_token_ids = None if instruction_template is None else self._ids_of(instruction_template)
        self.ignore_index = ignore_index

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """A padded batch: `input_ids`, `attention_mask`, `labels`, int64 [B, T]."""
        batch = super().torch_call(examples)
        for row, (ids, labels) in enumerate(zip(batch["input_ids"].tolist(), batch["labels"], strict=True)):
            # differs from v0.7: a template that contains the padding token is found too
            ignored = self._ignored_spans(ids)
            if ignored is None:
                text = self.tokenizer.decode(ids)
                warn_user(
                    f"sample {row} of the batch has no {self._missing(ids)}: it adds nothing to the loss. "
                    f"If this happens often, raise max_seq_length. The sample: {text}"
                )
                ignored = [(0, len(labels))]
            for start, end in ignored:
                labels[start:end] = self.ignore_index
        return batch

    def _ids_of(self, template: str | list[int]) -> list[int]:
        if isinstance(template, str):
            ids: list[int] = self.tokenizer.encode(template, add_special_tokens=False)
        else:
            ids = list(template)
        if not ids:
            raise ValueError(f"the template {template!r} has no tokens: it must say how a turn begins")
        return ids

    def _ignored_spans(self, row: list[int]) -> list[tuple[int, int]] | None:
        """The spans [start, end) to ignore, or None if a template is missing."""
        width = len(self.response_token_ids)
        responses = [start + width for start in occurrences(self.response_token_ids, row)]
        if not responses:
            return None
        if self.instruction_token_ids is None:
            return [(0, responses[-1])]
        instructions = occurrences(self.instruction_token_ids, row)
        if not instructions:
            return None
        # differs from v0.7: there the templates were counted off in pairs, although one may follow itself
        spans, start = [], 0
        while start < len(row):
            end = next((end for end in responses if end - width >= start), len(row))
            spans.append((start, end))
            start = min((at for at in (*instructions, *(e - width for e in responses)) if at >= end), default=len(row))
        return spans

    def _missing(self, row: list[int]) -> str:
        if not occurrences(self.response_token_ids, row):
            return f"response template {self.response_template!r}"
        return f"instruction template {self.instruction_template!r}"


def occurrences(pattern: list[int], row: list[int]) -> list[int]:
    """Positions where `pattern` begins in `row`, including overlapping occurrences."""
    width = len(pattern)
    return [
        start
        for start in range(len(row) - width + 1)
        if row[start] == pattern[0] and row[start : start + width] == pattern
    ]


# --- pairs ---------------------------------------------------------------------------------------------------


@dataclass
class RewardDataCollatorWithPadding:
    """Turns pairs of tokenized texts into a batch of a `RewardTrainer`.

    Args:
        tokenizer: pads, on the side of its class, so that a score does not depend on the other texts of the batch.
        padding: of `tokenizer.pad`; True pads to the longest text of the batch.
        max_length: with padding="max_length", the length to pad to.
        pad_to_multiple_of: round the length up to a multiple of this.
        return_tensors: "pt".
    """

    tokenizer: Any
    padding: bool | str = True
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The four columns of `PAIR_COLUMNS` padded, int64 [B, T] each; `margin` float32 [B] if there is one.

        Raises:
            ValueError: a row lacks a column.
        """
        for row, feature in enumerate(features):
            if missing := [name for name in PAIR_COLUMNS if name not in feature]:
                raise ValueError(f"row {row} of the batch has no {', '.join(missing)}; it has {', '.join(feature)}")
        batch: dict[str, Any] = {}
        # differs from v0.7: a tokenizer that was set to pad on the left shifted absolute positions
        padding_side = side_of_the_class(self.tokenizer)
        for side in ("chosen", "rejected"):
            padded = self.tokenizer.pad(
                [{name: feature[f"{name}_{side}"] for name in ("input_ids", "attention_mask")} for feature in features],
                padding=self.padding,
                max_length=self.max_length if self.padding == "max_length" else None,
                pad_to_multiple_of=self.pad_to_multiple_of,
                padding_side=padding_side,
                return_tensors=self.return_tensors,
            )
            batch |= {f"{name}_{side}": padded[name] for name in ("input_ids", "attention_mask")}
        batch["return_loss"] = True
        if "margin" in features[0]:
            batch["margin"] = torch.tensor([feature["margin"] for feature in features], dtype=torch.float)
        return batch


@dataclass
class DPODataCollatorWithPadding:
    """Turns tokenized rows of a `DPOTrainer` into a padded batch.

    Prompts are padded on the left, so that a model can continue them; everything else on the right. An
    encoder-decoder pads its prompts on the right: they are its encoder's input.

    Args:
        pad_token_id: fills `*_input_ids`.
        label_pad_token_id: fills `*_labels`; masks are filled with 0.
        is_encoder_decoder: the model has an encoder.
    """

    pad_token_id: int = 0
    label_pad_token_id: int = -100
    is_encoder_decoder: bool | None = False

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Token columns as int64 [B, T], `*_logps` as float32 [B], other columns as lists.

        Raises:
            ValueError: there is no padding token.
        """
        batch: dict[str, Any] = {}
        for key in features[0]:
            column = [feature[key] for feature in features]
            if key.endswith(("_input_ids", "_attention_mask", "_labels")):
                on_left = key.startswith("prompt_") and not self.is_encoder_decoder
                batch[key] = pad_sequence(
                    [torch.as_tensor(row, dtype=torch.long) for row in column],
                    batch_first=True,
                    padding_value=self._filling_of(key),
                    padding_side="left" if on_left else "right",
                )
            elif key.endswith("_logps"):
                batch[key] = torch.tensor(column)
            else:
                batch[key] = column
        return batch

    def _filling_of(self, key: str) -> int:
        if key.endswith("_attention_mask"):
            return 0
        if key.endswith("_labels"):
            return self.label_pad_token_id
        if self.pad_token_id is None:
            raise ValueError(
                "there is no padding token: set tokenizer.pad_token, for example to tokenizer.eos_token, before the "
                "trainer is built"
            )
        return self.pad_token_id
