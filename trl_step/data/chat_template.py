"""Finds the text that a chat template puts around the model's turns, so that the turns are never rendered again."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

Message = Mapping[str, Any]


class Between(NamedTuple):
    """`ending`: the end of an assistant turn, as the template writes it; `rest`: what follows, up to the next turn."""

    ending: str
    rest: str


class ChatTemplate:
    """The chat template of a tokenizer.

    An episode is one sequence of tokens: the rendered prompt, then what the model wrote token for token, then what the
    template puts between that turn and the next. The last is found by rendering the prompt with a placeholder for the
    model's turn and taking the text after the placeholder. So nothing that the model wrote passes through the
    template: it cannot forge a message, and a template that strips or rewrites earlier turns changes nothing.

    Args:
        tokenizer: of the model.
        template: Jinja text; None takes the tokenizer's own.
        schemas: JSON schemas of the tools that the template shows.
        options: further variables of the template, such as `enable_thinking`.

    Raises:
        ValueError: neither `template` nor the tokenizer has one.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | None = None,
        schemas: Sequence[Mapping[str, Any]] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if template is None and not getattr(tokenizer, "chat_template", None):
            raise ValueError("the tokenizer has no chat template; give one as chat_template")
        self.tokenizer = tokenizer
        self.template = template
        self.schemas = [dict(schema) for schema in schemas]
        self.options = dict(options or {})
        # unknown to model and tools, so that neither can write it
        self._placeholder = f"turn{uuid.uuid4().hex}"

    def render(self, messages: Sequence[Message], open_turn: bool) -> str:
        """The text of `messages`; with `open_turn` followed by the beginning of the assistant's next turn."""
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=self.schemas or None,
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=open_turn,
            **self.options,
        )

    def between(self, prompt: Sequence[Message], new: Sequence[Message]) -> Between:
        """The text between an assistant turn after `prompt` and the one that answers the messages `new`.

        Raises:
            ValueError: the template leaves no trace of an assistant turn that is not the last message.
        """
        closed = self.render([*prompt, {"role": "assistant", "content": self._placeholder}], open_turn=False)
        ending = self._after_placeholder(closed)
        found = self._around_text(prompt, new, closed, ending)
        if found is None:
            found = self._around_calls(prompt, new)
        if found is None:
            raise ValueError(
                "the chat template does not render an assistant turn that other messages follow "
                f"({', '.join(str(message.get('role')) for message in new)}); give another chat_template"
            )
        return found

    def _around_text(
        self, prompt: Sequence[Message], new: Sequence[Message], closed: str, ending: str | None
    ) -> Between | None:
        """With a placeholder that is plain text."""
        try:
            whole = self.render([*prompt, {"role": "assistant", "content": self._placeholder}, *new], open_turn=True)
        except Exception:  # the template's raise_exception: tool messages may need preceding calls
            return None
        after = self._after_placeholder(whole)
        if after is not None:
            known = ending if ending is not None and after.startswith(ending) else ""
            return Between(known, after[len(known) :])
        if not ending:
            return None
        # the placeholder is gone: the turn ends at the last of as many endings as there were before `new`
        position = -1
        for _ in range(closed.count(ending)):
            position = whole.find(ending, position + 1)
            if position < 0:
                return None
        return Between(ending, whole[position + len(ending) :])

    def _around_calls(self, prompt: Sequence[Message], new: Sequence[Message]) -> Between | None:
        """With a placeholder in calls of the tools which `new` answers."""
        turn = {"role": "assistant", "content": "", "tool_calls": [
            {"id": reply.get("tool_call_id"), "type": "function",
             "function": {"name": reply.get("name"), "arguments": {"value": self._placeholder}}}
            for reply in new if reply.get("role") == "tool"
        ]}  # fmt: skip
        try:
            closed = self.render([*prompt, turn], open_turn=False)
            whole = self.render([*prompt, turn, *new], open_turn=True)
        except Exception:
            return None
        ending = self._after_placeholder(closed)
        return Between(ending, whole[len(closed) :]) if ending is not None and whole.startswith(closed) else None

    def _after_placeholder(self, text: str) -> str | None:
        _, found, after = text.rpartition(self._placeholder)
        return after if found else None

    def tokenize(self, text: str, device: torch.device) -> torch.Tensor:
        """Ids of rendered text [n] int64; the template has already added BOS and other special tokens."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor(ids, dtype=torch.long, device=device)

    def tokens_between(self, between: Between, last: int, end_ids: set[int], device: torch.device) -> torch.Tensor:
        """Ids [n] int64 that follow a turn whose last token is `last`: an end token that the model wrote itself is
        not repeated."""
        tokens = self.tokenize(between.ending + between.rest, device)
        if last not in end_ids:
            return tokens
        in_ending = (tokens[: len(self.tokenize(between.ending, device))] == last).nonzero().flatten()
        return tokens[int(in_ending[0]) + 1 :] if len(in_ending) else tokens
