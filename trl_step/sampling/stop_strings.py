"""Ends a row of a batch as soon as its new text contains a stop string."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trl_step.sampling.row_ends import BatchCriterion

UNFINISHED_CHARACTER = "�"
"""What a tokenizer shows for the first bytes of a character whose other bytes are in tokens to come."""

MOST_HELD_TOKENS = 8
"""Tokens that may wait for the rest of a character; a UTF-8 character has at most four bytes."""


@dataclass
class _Row:
    """The end of a row's new text, and the few tokens that still decide how the next ones are spelled."""

    window: list[int] = field(default_factory=list)
    read: int = 0  # tokens at the start of `window` whose text is in `tail`, or in the prompt
    tail: str = ""
    done: bool = False


class StringStoppingCriteria(BatchCriterion):
    """Ends each row by itself once what it generated contains one of `stop_strings`.

    Every token is decoded once, beside one neighbour that its spelling may depend on: the cost of a row is linear in
    its new tokens. Rows may change places, as those of a beam search do.

    transformers' `StopStringCriteria` knows each token's text beforehand. It cannot be made for a tokenizer without the
    letters a to f, nor see a character that is several tokens of a tokenizer in Python, as those of ByT5; and a stop
    string may begin in the prompt there.

    Args:
        stop_strings: plain strings; they may span several tokens.
        tokenizer: decodes the generated ids.

    Raises:
        TypeError: `stop_strings` is a single string.

    Attributes:
        generated_tokens: for each row the new tokens up to the one that completed a stop string, or all so far.
    """

    def __init__(self, stop_strings: Sequence[str], tokenizer: Any) -> None:
        if isinstance(stop_strings, str):
            raise TypeError("stop_strings is a list of strings; put the single one in a list")
        self.stop_strings = list(stop_strings)
        self.tokenizer = tokenizer
        self.generated_tokens: list[int] = []
        self.start_batch()

    def start_batch(self) -> None:
        """The next call brings the first new token of a new batch."""
        self._rows: list[_Row] = []
        self._seen: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Bools [n], true where the new text of a row of `input_ids` [n, W] contains a stop string.

        # differs from v0.7: that answered with one bool for all rows, and rows went on until the last was done
        """
        begun = self._begun(input_ids)
        if not begun:
            begun = input_ids.shape[1] - 1
            neighbours = input_ids[:, max(0, begun - 1) : begun].tolist()
            self._rows = [_Row(window=neighbour, read=len(neighbour)) for neighbour in neighbours]
            self.generated_tokens = [0] * len(self._rows)
        for column in input_ids[:, begun:].T.tolist():
            self._read(column)
        self._seen = input_ids
        return torch.tensor([row.done for row in self._rows], dtype=torch.bool, device=input_ids.device)

    def _begun(self, input_ids: torch.Tensor) -> int:
        """The width of the call before if these are its rows, grown by new tokens; else 0."""
        if self._seen is None or input_ids.shape[1] <= self._seen.shape[1]:
            return 0
        width = self._seen.shape[1]
        begins = input_ids[:, :width]
        if not torch.equal(begins, self._seen):
            places = {tuple(row): i for i, row in enumerate(self._seen.tolist())}
            rows = [places.get(tuple(row), -1) for row in begins.tolist()]
            if min(rows) < 0:
                return 0
            self._rows = [copy.deepcopy(self._rows[i]) for i in rows]
            self.generated_tokens = [self.generated_tokens[i] for i in rows]
        return width

    def _read(self, column: Sequence[int]) -> None:
        """Take one new token per row."""
        open_rows = [(i, row) for i, row in enumerate(self._rows) if not row.done]
        for i, row in open_rows:
            row.window.append(column[i])
            self.generated_tokens[i] += 1
        before = self._decode([row.window[: row.read] for _, row in open_rows])
        after = self._decode([row.window for _, row in open_rows])
        longest = max(map(len, self.stop_strings), default=1)
        for (_, row), old, new in zip(open_rows, before, after, strict=True):
            text = row.tail + new[len(old) :]
            row.done = any(stop in text for stop in self.stop_strings)
            held = len(row.window) - row.read
            if held <= MOST_HELD_TOKENS and (len(new) <= len(old) or new.endswith(UNFINISHED_CHARACTER)):
                continue
            row.tail = text[max(0, len(text) - longest + 1) :]
            row.window = row.window[row.read :]
            row.read = len(row.window)

    def _decode(self, rows: list[list[int]]) -> list[str]:
        return self.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False) if rows else []
