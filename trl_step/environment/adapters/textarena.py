"""Games of TextArena (`pip install textarena`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class TextArenaGame:
    """A game of TextArena for `GameRunner`: `GameRunner(model, tokenizer, partial(TextArenaGame, "TicTacToe-v0"))`.

    A player sees the messages that are new to it, without its own moves, which stand in its episode already. The game
    is made without TextArena's own wrappers, which would show the whole game in each turn.

    Args:
        name: the id of the game.
        settings: for `textarena.make`.

    Raises:
        ImportError: textarena is not installed.
        ValueError: there is no such game.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        try:
            import textarena
        except ImportError as error:
            raise ImportError(f"the game {name} needs TextArena: pip install textarena") from error
        self._own_move = textarena.ObservationType.PLAYER_ACTION
        self.game = textarena.make(name if name.endswith("-raw") else f"{name}-raw", **settings)

    def reset(self, num_players: int, seed: Any = None) -> None:
        self.game.reset(num_players=num_players, seed=seed)

    def get_observation(self) -> tuple[int, str]:
        player, messages = self.game.get_observation()
        texts = [
            text
            for sender, text, kind in messages
            # some games of 0.7 report a move with its player's number in the place of the text
            if isinstance(text, str) and not (sender == player and kind is self._own_move)
        ]
        return player, "\n".join(texts) + "\n"

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        return self.game.step(action)  # type: ignore[no-any-return]

    def close(self) -> tuple[Mapping[int, float] | None, Any]:
        return self.game.close()  # type: ignore[no-any-return]
