"""How an observation becomes text and tokens of an episode, with a chat template or without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trl_step.data.chat_template import Between, ChatTemplate, Message
from trl_step.environment.protocol import Observation
from trl_step.environment.text_history import TextHistory
from trl_step.environment.tool_calls import control_pattern, escape, special_tokens, whole
from trl_step.environment.turns import TurnWriter


class NoTokens(ValueError):
    """A first observation without tokens."""


class Display:
    """Shows observations to a model.

    Args:
        writer: of the model's turns.
        template: of the chat; None: observations are plain text.
    """

    def __init__(self, writer: TurnWriter, template: ChatTemplate | None = None) -> None:
        self.writer = writer
        self.template = template
        self._control = control_pattern(special_tokens(writer.tokenizer))

    def begin(self, observation: Observation) -> tuple[TextHistory, list[Message]]:
        """The history that begins with an observation, and its messages, none without a template.

        Raises:
            TypeError: the observation has the wrong type.
            NoTokens: it has no tokens.
        """
        prompt: list[Message] = []
        if self.template is None:
            text = _plain(observation)
            tokens = self.writer.tokenize(text)
        else:
            prompt = self._messages(observation)
            text = whole(self.template.render(prompt, open_turn=True))
            tokens = self.template.tokenize(text, self.writer.device)
        if not text or len(tokens) == 0:
            raise NoTokens("its first observation has no tokens; return some text from `reset`")
        return TextHistory(text, tokens, system=True), prompt

    def show(self, history: TextHistory, prompt: list[Message], observation: Observation) -> None:
        """Add an observation after the model's turn.

        Args:
            prompt: the messages of the first observation
        """
        if self.template is None:
            tokens = self.writer.tokenize(_plain(observation), special_tokens=False)
        else:
            between = Between(*map(whole, self.template.between(prompt, self._messages(observation))))
            last = int(history.tokens[-1])
            tokens = self.template.tokens_between(between, last, self.writer.end_ids(), self.writer.device)
        self.writer.append_given(history, self.writer.tokenizer.decode(tokens), tokens)

    def said(self, history: TextHistory) -> str:
        """The model's last turn as text without special tokens."""
        return self.writer.tokenizer.decode(self.writer.written(history), skip_special_tokens=True)

    def _messages(self, observation: Observation) -> list[Message]:
        if isinstance(observation, str):
            return [{"role": "user", "content": escape(observation, self._control)}]
        messages = [observation] if isinstance(observation, Mapping) else observation
        if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) and "role" in m for m in messages):
            raise TypeError(f"an observation is a text, a message or a list of messages, got {observation!r:.80}")
        return list(messages)


def _plain(observation: Any) -> str:
    if not isinstance(observation, str):
        raise TypeError(
            f"without a chat template an observation is a text, got {type(observation).__name__}; give a to_text that "
            "makes it one"
        )
    return whole(observation)
