"""Samples the model's turns and adds them to an episode, within the episode's remaining room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from trl_step.environment.text_history import TextHistory
from trl_step.sampling.local import LocalSampler
from trl_step.sampling.options import all_eos_ids, padding_id
from trl_step.sampling.sampler import Sampler


def sampler_of(model: Any, tokenizer: Any) -> Sampler | None:
    """What writes the turns of an environment: a sampler itself, or one around a model; None stays None."""
    return model if model is None or isinstance(model, Sampler) else LocalSampler(model, tokenizer)


@dataclass(frozen=True)
class TurnWriter:
    """Lets a model write turns.

    Attributes:
        sampler: what draws the turns (see `sampler_of`).
        tokenizer: of its model.
        generation_kwargs: settings of `Sampler.sample`; never changed.
        max_length: tokens of a whole episode, or None.
        stop_strings: a turn ends after the first of them.
    """

    sampler: Sampler | None
    tokenizer: Any
    generation_kwargs: dict[str, Any] = field(default_factory=dict)
    max_length: int | None = None
    stop_strings: Sequence[str] = ()

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether turns are decoder tokens after a start token."""
        return self.sampler is not None and self.sampler.is_encoder_decoder

    @property
    def device(self) -> torch.device:
        """That of the episodes' tokens; the CPU without a model."""
        return torch.device("cpu") if self.sampler is None else self.sampler.device

    # --- tokens --------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, special_tokens: bool = True) -> torch.Tensor:
        """Ids of `text`, int64 [n], with or without special tokens such as BOS."""
        ids = self.tokenizer(text, add_special_tokens=special_tokens).input_ids
        return torch.tensor(ids, dtype=torch.long, device=self.device)

    def end_ids(self) -> set[int]:
        """All ids that end a turn: the tokenizer's, the generation config's and those of `generation_kwargs`."""
        eos = self.tokenizer.eos_token_id
        return set(
            all_eos_ids(getattr(self.sampler, "model", None), [] if eos is None else [eos], self.generation_kwargs)
        )

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
        if self.sampler is None:
            raise ValueError("this environment has no model; give one, or override `generate`")
        settings = {"batch_size": batch_size, "return_logprobs": False, **self.generation_kwargs}
        if self.max_length is not None:
            asked = settings.pop("max_new_tokens", None)
            settings["max_new_tokens"] = _limits(self.max_length, query_tensors, asked, settings)
        if self.stop_strings:
            settings["stop_strings"] = [*self.stop_strings, *_as_list(settings.get("stop_strings"))]
        if pad_to_multiple_of is not None:
            settings["pad_to_multiple_of"] = pad_to_multiple_of
        return self.sampler.sample(query_tensors, **settings).responses


def _as_list(stop_strings: Any) -> list[str]:
    return [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or ())


def _limits(
    max_length: int, query_tensors: Sequence[torch.Tensor], asked: int | None, settings: dict[str, Any]
) -> list[int]:
    """Number of new tokens for each query: what was asked for, within the room that `max_length` leaves."""
    config = settings.get("generation_config")
    asked = asked if asked is not None else getattr(config, "max_new_tokens", None)
    total = settings.pop("max_length", None) or getattr(config, "max_length", None)
    limits = []
    for query in query_tensors:
        limit = max_length - len(query)
        if asked is not None:
            limit = min(limit, asked)
        elif total is not None:
            limit = min(limit, total - len(query))
        limits.append(limit)
    return limits
