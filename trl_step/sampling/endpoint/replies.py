"""The objects of OpenAI's API that an endpoint answers with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import torch

from trl_step.sampling.endpoint.turns import Turn, decode
from trl_step.sampling.stop_strings import UNFINISHED_CHARACTER


class Choice(NamedTuple):
    """One answer of a call."""

    turn: Turn
    tokens: torch.Tensor
    """[R] int64"""
    logprobs: Optional[torch.Tensor]
    """[R] float32, if the client asked for them"""


class Reply(NamedTuple):
    """All answers of a call, before they are written as JSON."""

    id: str
    model: str
    choices: list[Choice]
    prompt_tokens: int
    chat: bool
    tokenizer: Any

    def whole(self) -> dict[str, Any]:
        """The answer to a call that does not stream."""
        return {**self._head(), "choices": [self._choice(*item) for item in enumerate(self.choices)],
                "usage": self._usage()}  # fmt: skip

    def before_the_end(self) -> Iterator[str]:
        """The events of a stream that hold what the model said."""
        for index, choice in enumerate(self.choices):
            if self.chat:
                yield self._event(index, {"delta": {"role": "assistant", "content": ""}})
            part: dict[str, Any] = {"text": choice.turn.content}
            if self.chat:
                part = {"delta": {"content": choice.turn.content}}
            if choice.turn.content or choice.logprobs is not None:
                yield self._event(index, part | {"logprobs": self._logprobs(choice)})
            for place, call in enumerate(choice.turn.calls):
                yield self._event(index, {"delta": {"tool_calls": [{"index": place, **call}]}})

    def end(self, include_usage: bool) -> Iterator[str]:
        """The events that follow."""
        for index, choice in enumerate(self.choices):
            part: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            yield self._event(index, part | {"finish_reason": choice.turn.finish_reason})
        if include_usage:
            yield _event({**self._head(".chunk"), "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _head(self, chunk: str = "") -> dict[str, Any]:
        kind = f"chat.completion{chunk}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}

    def _event(self, index: int, part: dict[str, Any]) -> str:
        choice = {"index": index, "finish_reason": None, "logprobs": None} | part
        return _event({**self._head(".chunk"), "choices": [choice]})

    def _choice(self, index: int, choice: Choice) -> dict[str, Any]:
        turn = choice.turn
        said: dict[str, Any] = {"text": turn.content}
        if self.chat:
            content = turn.content if turn.content or not turn.calls else None
            said = {"message": {"role": "assistant", "content": content}}
            if turn.calls:
                said["message"]["tool_calls"] = turn.calls
        return {"index": index, "finish_reason": turn.finish_reason, "logprobs": self._logprobs(choice)} | said

    def _logprobs(self, choice: Choice) -> Optional[dict[str, Any]]:
        """One entry per token that the model wrote, end token included."""
        if choice.logprobs is None:
            return None
        texts = [decode(self.tokenizer, token) for token in choice.tokens.split(1)]
        numbers = choice.logprobs.tolist()
        if not self.chat:
            offsets = [sum(map(len, texts[:i])) for i in range(len(texts))]
            return {"tokens": texts, "token_logprobs": numbers, "top_logprobs": None, "text_offset": offsets}
        entries = [
            {"token": text, "logprob": number, "bytes": _bytes(text), "top_logprobs": []}
            for text, number in zip(texts, numbers, strict=True)
        ]
        return {"content": entries, "refusal": None}

    def _usage(self) -> dict[str, int]:
        written = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }


def _bytes(text: str) -> Optional[list[int]]:
    """Those of a token's text; None if the token is a part of a character."""
    return None if UNFINISHED_CHARACTER in text else list(text.encode())


def models(names: Sequence[str]) -> dict[str, Any]:
    """The list of models."""
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "trl_step"} for name in names]
    return {"object": "list", "data": listed}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
