"""Packs texts into rows of one length: no padding, and no token is lost except after the last full row."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset

from trl_step.data.special_tokens import once, tokens_of
from trl_step.models.notices import warn_user


class ConstantLengthDataset(IterableDataset):
    """Rows of exactly `seq_length` tokens, cut from the concatenated texts of a dataset.

    Texts are read until there are about `num_of_sequences` rows, tokenized together, joined and cut; the rest after the
    last full row of such a buffer is dropped.

    Args:
        tokenizer: its end-of-text token separates the texts.
        dataset: any iterable of dictionaries; with `infinite` it is iterated over repeatedly.
        dataset_text_field: the column with the text, if there is no `formatting_func`.
        formatting_func: from a row to its text, or to a list of texts.
        infinite: start over at the dataset's end.
        seq_length: tokens per row.
        num_of_sequences: estimated rows per buffer.
        chars_per_token: characters per token, for that estimate.
        eos_token_id: separates the texts if the tokenizer has no end-of-text token.
        shuffle: shuffle the rows of each buffer, with `stream`.
        append_concat_token: put the separator after each text that does not end with it.
        add_special_tokens: let the tokenizer add its own.

    Attributes:
        stream: a `random.Random` that shuffles; None: Python's global one.

    Raises:
        ValueError: neither `dataset_text_field` nor `formatting_func` is given.
    """

    def __init__(
        self,
        tokenizer: Any,
        dataset: Any,
        dataset_text_field: str | None = None,
        formatting_func: Callable[[Any], str] | None = None,
        infinite: bool = False,
        seq_length: int = 1024,
        num_of_sequences: int = 1024,
        chars_per_token: float = 3.6,
        eos_token_id: int = 0,
        shuffle: bool = True,
        append_concat_token: bool = True,
        add_special_tokens: bool = True,
    ) -> None:
        if formatting_func is None and dataset_text_field is None:
            raise ValueError("give dataset_text_field, the column with the text, or formatting_func, from row to text")
        if tokenizer.eos_token_id is None:
            warn_user(f"the tokenizer has no end-of-text token: texts are separated by eos_token_id={eos_token_id}")
        self.tokenizer = tokenizer
        # differs from v0.7: an end-of-text token whose id is 0 separates; there it counted as missing
        self.concat_token_id = eos_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.dataset = dataset
        self.seq_length = seq_length
        self.infinite = infinite
        self.current_size = 0
        self.max_buffer_size = seq_length * chars_per_token * num_of_sequences
        self.shuffle = shuffle
        self.stream: random.Random | None = None
        self.append_concat_token = append_concat_token
        self.add_special_tokens = add_special_tokens
        self.formatting_func = formatting_func or (lambda row: row[dataset_text_field])

    def __len__(self) -> int:
        """Number of texts, not of rows: the number of rows is known only after the last text."""
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """`input_ids` and `labels`, the same int64 [seq_length]."""
        for texts in self._buffers():
            rows = self._rows_of(texts)
            if self.shuffle:
                (self.stream or random).shuffle(rows)
            for row in rows:
                self.current_size += 1
                yield {"input_ids": torch.tensor(row), "labels": torch.tensor(row)}

    def _buffers(self) -> Iterator[list[str]]:
        """Texts, in lists of at least `max_buffer_size` characters; the last list may hold fewer."""
        texts: list[str] = []
        characters = 0
        for text in self._texts():
            texts.append(text)
            characters += len(text)
            if characters >= self.max_buffer_size:
                yield texts
                texts, characters = [], 0
        if texts:
            yield texts

    def _texts(self) -> Iterator[str]:
        """Every text once, or endlessly if `infinite`."""
        while True:
            empty = True
            for row in self.dataset:
                empty = False
                text = self.formatting_func(row)
                if not isinstance(text, (str, list)) or not all(isinstance(one, str) for one in text):
                    raise ValueError(
                        "formatting_func gets a row, since packing=True, and must return its text or a list of texts, "
                        f"not {type(text).__name__}: {text!r:.80}"
                    )
                yield from [text] if isinstance(text, str) else text
            if not self.infinite or empty:
                return

    def _rows_of(self, texts: list[str]) -> list[list[int]]:
        """The full rows of the joined texts."""
        tokenized = tokens_of(self.tokenizer, texts, add_special_tokens=self.add_special_tokens)["input_ids"]
        separator = [self.concat_token_id] if self.append_concat_token else []
        # differs from v0.7: a text that ends with the separator gets no second one
        stream = [token for ids in tokenized for token in once(ids, [], separator)]
        starts = range(0, len(stream) - self.seq_length + 1, self.seq_length)
        return [stream[start : start + self.seq_length] for start in starts]
