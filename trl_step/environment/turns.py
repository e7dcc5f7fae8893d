"""Samples the model's turns and adds them to an episode, within the episode's remaining room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel

from trl_step.environment.text_history import TextHistory
from trl_step.sampling.local import all_eos_ids, generate_batched, padding_id
from trl_step.sampling.stop_strings import StringStoppingCriteria


def inner_model(model: Any) -> Any:
    """`model` without parallel wrappers; None stays None."""
    return None if model is None else extract_model_from_parallel(model)


def is_encoder_decoder(model: Any) -> bool:
    """Whether the model's turns are decoder tokens after a start token."""
    inner = inner_model(model)
    config = getattr(getattr(inner, "pretrained_model", inner), "config", None)
    return bool(getattr(inner, "is_encoder_decoder", False) or getattr(config, "is_encoder_decoder", False))


def device_of(model: Any) -> torch.device:
    """The model's device; the CPU without a model."""
    inner = inner_model(model)
    return getattr(getattr(inner, "pretrained_model", inner), "device", torch.device("cpu"))


@dataclass(frozen=True)
class TurnWriter:
    """Lets a model write turns.

    Attributes:
        model: a value-head wrapper or a transformers model, without parallel wrappers (see `inner_model`).
        tokenizer: of that model.
        is_encoder_decoder, device: of that model.
        generation_kwargs: for `model.generate`; never changed.
        max_length: tokens of a whole episode, or None.
        stop_strings: a turn ends after the first of them.
    """

    model: Any
    tokenizer: Any
    is_encoder_decoder: bool
    device: torch.device
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    stop_strings: Sequence[str] = ()

    # --- tokens --------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, special_tokens: bool = True) -> torch.Tensor:
        """Ids of `text`, int64 [n], with or without special tokens such as BOS."""
        ids = self.tokenizer(text, add_special_tokens=special_tokens).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def end_ids(self) -> set[int]:
        """All ids that end a turn: the tokenizer's, the generation config's and those of `generation_kwargs`."""
        eos = self.tokenizer.eos_token_id
        return set(all_eos_ids(self.model, [] if eos is None else [eos], self.generation_kwargs))

    def end_token(self, like: torch.Tensor) -> torch.Tensor:
        """An end-of-sequence id, int64 [1], on the device of `like`."""
        eos = self.tokenizer.eos_token_id
        return like.new_tensor([padding_id(self.tokenizer) if eos is None else eos], dtype=torch.long)

    def room(self, history: TextHistory) -> float:
        """Tokens that still fit into the episode."""
        return float("inf") if self.max_length is None else self.max_length - len(history.tokens)

    def written(self, history: TextHistory) -> torch.Tensor:
        """The ids that the model wrote in the last segment, without the decoder's start token."""
        return history.last_token_segment[1:] if self.is_encoder_decoder else history.last_token_segment

    def spoken(self, history: TextHistory) -> str:
        """The text of the model's last turn without its end token; other special tokens stay."""
        ids = self.written(history)
        if int(ids[-1]) in self.end_ids():
            ids = ids[:-1]
        return self.tokenizer.decode(ids)

    # --- turns ---------------------------------------------------------------------------------------------------

    def write_turns(self, histories: Sequence[TextHistory]) -> list[TextHistory]:
        """Let the model write one turn of each open episode; returns the episodes that got one.

        An episode without room for a token is completed as truncated.
        """
        for history in histories:
            if not history.completed and self.room(history) < 1:
                self.close_full(history)
        active = [history for history in histories if not history.completed]
        turns = self.generate([history.tokens for history in active]) if active else []
        for history, turn in zip(active, turns, strict=True):
            self.append_turn(history, turn)
        return active

    def append_turn(self, history: TextHistory, tokens: torch.Tensor) -> None:
        """Add what the model wrote. A turn without tokens counts as an end token; its text is never empty."""
        start = tokens[:1] if self.is_encoder_decoder else tokens[:0]
        written = tokens[len(start) :]
        if len(written) == 0:
            written = self.end_token(tokens)
        text = self.tokenizer.decode(written)
        if not text:
            text = "".join(str(token) for token in self.tokenizer.convert_ids_to_tokens(written.tolist()))
        history.append_segment(text, torch.cat((start, written)), system=False)
        if self.is_encoder_decoder:
            history.token_masks[history.token_spans[-1][0]] = 0  # the start token is given, not written

    def append_given(self, history: TextHistory, text: str, tokens: torch.Tensor) -> None:
        """Add the environment's text, or end the episode if that leaves no room for another turn."""
        if len(tokens) >= self.room(history):
            history.complete(truncated=True)
        elif len(tokens):
            history.append_segment(text, tokens, system=True)

    def close_full(self, history: TextHistory) -> None:
        """Complete an episode without room; if it has no response, a masked end token becomes its response."""
        if len(history.text_spans) == 1:
            token = self.end_token(history.tokens)
            history.append_segment(self.tokenizer.decode(token) or "</s>", token, system=True)
        history.complete(truncated=True)

    # --- sampling ------------------------------------------------------------------------------------------------

    def generate(
        self, query_tensors: Sequence[torch.Tensor], batch_size: int = 16, pad_to_multiple_of: int | None = None
    ) -> list[torch.Tensor]:
        """One turn per query [Q_i]: int64 tensors [R_i] that end at a stop string, an end token or the limit."""
        if self.model is None:
            raise ValueError("this environment has no model; give one, or override `generate`")
        options = dict(self.generation_kwargs)
        pad_token_id = padding_id(self.tokenizer, options.pop("pad_token_id", None))
        asked = options.pop("max_new_tokens", None)
        criteria = list(options.pop("stopping_criteria", None) or [])
        if self.stop_strings:
            criteria.append(StringStoppingCriteria(self.stop_strings, self.tokenizer))
        eos = self.tokenizer.eos_token_id
        return generate_batched(
            self.model,
            query_tensors,
            pad_token_id=pad_token_id,
            eos_token_ids=[] if eos is None else [eos],
            is_encoder_decoder=self.is_encoder_decoder,
            device=self.device,
            batch_size=batch_size,
            max_new_tokens=asked
            if self.max_length is None
            else _limits(self.max_length, query_tensors, asked, options),
            return_prompt=False,
            pad_to_multiple_of=pad_to_multiple_of,
            stopping_criteria=criteria,
            **options,
        )


def _limits(
    max_length: int, query_tensors: Sequence[torch.Tensor], asked: int | None, options: dict[str, Any]
) -> list[int]:
    """Number of new tokens for each query: what was asked for, within the room that `max_length` leaves."""
    config = options.get("generation_config")
    asked = asked if asked is not None else getattr(config, "max_new_tokens", None)
    total = options.pop("max_length", None) or getattr(config, "max_length", None)
    limits = []
    for query in query_tensors:
        limit = max_length - len(query)
        if asked is not None:
            limit = min(limit, asked)
        elif total is not None:
            limit = min(limit, total - len(query))
        limits.append(limit)
    return limits
