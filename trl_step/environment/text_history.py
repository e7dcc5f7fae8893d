"""The text and the tokens of one episode, and which of them the model wrote."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from trl_step.import_utils import is_rich_available


class TextHistory:
    """An episode: segments of text and tokens, written alternately by the system (prompt, tools) and the model.

    Args:
        text: the first segment, usually the prompt.
        tokens: its ids, int64 [Q].
        system: False if the model wrote the first segment.

    Attributes:
        text, tokens: everything so far; `tokens` is int64 [Q + R].
        token_masks: int64 [Q + R], 1 where the model wrote the token.
        text_spans, token_spans: (start, end) of each segment in characters and in tokens.
        system_spans: for each segment whether the system wrote it.
        completed: nothing more is generated.
        truncated: completed because there was no room left, not because the model finished.
        reward: set by `TextEnvironment.compute_reward`.
    """

    def __init__(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        self.system_spans: list[bool] = []
        self.text_spans: list[tuple[int, int]] = []
        self.token_spans: list[tuple[int, int]] = []
        self.token_masks = torch.zeros(0, dtype=torch.long, device=tokens.device)
        self.text = ""
        self.tokens = torch.zeros(0, dtype=torch.long, device=tokens.device)
        self.completed = False
        self.truncated = False
        self.reward: Any = 0.0

        self.prompt_color = "black on grey85"
        self.system_color = "black on cyan3"
        self.model_color = "black on deep_sky_blue1"
        self.reward_color = "black on plum1"

        self.append_segment(text, tokens, system=system)

    def append_segment(self, text: str, tokens: torch.Tensor, system: bool = True) -> None:
        """Add a segment at the end.

        Args:
            text: at least one character.
            tokens: int64 [n], at least one.
            system: False if the model wrote it; only then do its tokens count in the mask.

        Raises:
            ValueError: `text` or `tokens` is empty.
        """
        if len(text) == 0 or len(tokens) == 0:
            raise ValueError(
                f"a segment needs text and tokens, got {len(text)} characters and {len(tokens)} tokens; "
                "leave empty segments out"
            )
        self.text_spans.append((len(self.text), len(self.text) + len(text)))
        self.token_spans.append((len(self.tokens), len(self.tokens) + len(tokens)))
        self.system_spans.append(system)
        self.text += text
        self.tokens = torch.cat((self.tokens, tokens))
        written = torch.zeros_like(tokens) if system else torch.ones_like(tokens)
        self.token_masks = torch.cat((self.token_masks, written))

    def complete(self, truncated: bool = False) -> None:
        """End the episode; `truncated` says that it was cut off."""
        self.completed = True
        self.truncated = truncated

    @property
    def last_text_segment(self) -> str:
        """The text of the last segment."""
        start, end = self.text_spans[-1]
        return self.text[start:end]

    @property
    def last_token_segment(self) -> torch.Tensor:
        """The tokens of the last segment, int64 [n]."""
        start, end = self.token_spans[-1]
        return self.tokens[start:end]

    def split_query_response_tokens(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [Q], response [R] and response mask [R] for `PPOTrainer.step`.

        The query is the first segment; the mask is 1 where the model wrote the token.
        """
        split = self.token_spans[0][1]
        return self.tokens[:split], self.tokens[split:], self.token_masks[split:]

    # --- display -------------------------------------------------------------------------------------------------

    def show_text(self, show_legend: bool = False) -> None:
        """Print the episode's text, coloured by who wrote it. Needs `rich`; without it a warning says so."""
        if not _can_show("text"):
            return
        from rich import print as rich_print
        from rich.text import Text

        text = Text(self.text)
        for i, (start, end) in enumerate(self.text_spans):
            text.stylize(self._segment_color(i), start, end)
        rich_print(self._with_reward(text))
        if show_legend:
            self.show_colour_legend()

    def show_tokens(self, tokenizer: Any, show_legend: bool = False) -> None:
        """Print the episode's tokens, coloured by who wrote them. Needs `rich`; without it a warning says so."""
        if not _can_show("tokens"):
            return
        from rich import print as rich_print
        from rich.text import Text

        text = Text()
        for i, (start, end) in enumerate(self.token_spans):
            for token in tokenizer.convert_ids_to_tokens(self.tokens[start:end].tolist()):
                text.append(str(token), style=self._segment_color(i))
                text.append(" ")
        rich_print(self._with_reward(text))
        if show_legend:
            self.show_colour_legend()

    def show_colour_legend(self) -> None:
        """Print what each colour means. Needs `rich`; without it a warning says so."""
        if not _can_show("the colour legend"):
            return
        from rich import print as rich_print
        from rich.text import Text

        text = Text("\n\n(Colour Legend: ")
        names = {
            "Prompt": self.prompt_color,
            "System": self.system_color,
            "Model": self.model_color,
            "Reward": self.reward_color,
        }
        for i, (name, color) in enumerate(names.items()):
            text.append("|" if i else "")
            text.append(name, style=color)
        text.append(")")
        rich_print(text)

    def _segment_color(self, index: int) -> str:
        if index == 0:
            return self.prompt_color
        return self.system_color if self.system_spans[index] else self.model_color

    def _with_reward(self, text: Any) -> Any:
        return text.append(f"\n\nReward: {self.reward}", style=self.reward_color)


def _can_show(what: str) -> bool:
    if not is_rich_available():
        warnings.warn(f"to show {what}, install rich: pip install rich", UserWarning, stacklevel=3)
        return False
    return True
