"""Games of several players, played by a language model on both sides, or against others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from trl_step.data.chat_template import ChatTemplate
from trl_step.environment.actors import in_words
from trl_step.environment.display import Display
from trl_step.environment.episodes import Episode, Episodes
from trl_step.environment.protocol import Observation, UnreadableAction
from trl_step.environment.side_by_side import Outcome, outcome_of
from trl_step.environment.turns import TurnWriter, sampler_of
from trl_step.sampling.sampler import Sampler

Opponent = Any
"""A function from what the player has seen and said so far, one text, to its answer; or a model, or a `Sampler`."""


class Game(Protocol):
    """A game in turns, one object per game. The names are TextArena's."""

    def reset(self, num_players: int, seed: Any = None) -> Any:
        """Begin a game; what it returns is not used."""

    def get_observation(self) -> tuple[int, Observation]:
        """Whose turn it is, and what this player has not seen yet."""

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        """The move of the player whose turn it is; returns whether the game is over, and an info dictionary.

        The model writes the text: treat it as hostile.
        """

    def close(self) -> tuple[Mapping[int, float] | None, Any]:
        """End the game; returns the reward of each player, None if it was not played to its end, and anything else."""


@dataclass
class _Seats:
    """A game that is being played, and what each player has seen and said of it."""

    game: Any
    number: int
    episodes: dict[int, Episode] = field(default_factory=dict)
    """of the players that had a turn"""
    unread: dict[int, Observation] = field(default_factory=dict)
    """what players are to see with their next observation"""
    open: bool = True


class GameRunner:
    """Lets a language model play a batch of games with several players. Each player has an episode of its own.

    ```python
    runner = GameRunner(model, tokenizer, Nim, generation_kwargs={"max_new_tokens": 4})
    episodes = runner.run(range(8), n=2)
    trainer.step(episodes.queries, episodes.responses, episodes.rewards, episodes.masks)
    ```

    A player's episode begins with what it sees at its first turn; what others did stands, masked, between its own
    turns. Its reward in the game is on the last token of its last turn.

    Args:
        model: a value-head wrapper or a transformers model, also in a parallel wrapper; or a `Sampler`.
        tokenizer: of that model, and of models that are opponents.
        make_game: creates a game; may be a class.
        players: number of players.
        opponents: who plays in place of the model, by player: a function `text -> answer`, a fixed model or a
            `Sampler`; players that are not named are the model.
        max_turns: turns of all players together; a game that is not over then is `truncated`.
        max_length: tokens of a whole episode, or None.
        generation_kwargs: for `model.generate`; never changed.
        stop_strings: a turn ends after the first of them.
        chat: observations are messages, rendered with the tokenizer's chat template.
        chat_template: a Jinja template in place of the tokenizer's; implies `chat`.
        strict: raise what a game raised instead of ending its episodes.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        make_game: Callable[[], Any],
        *,
        players: int = 2,
        opponents: Mapping[int, Opponent] | None = None,
        max_turns: int = 64,
        max_length: int | None = None,
        generation_kwargs: dict[str, Any] | None = None,
        stop_strings: Sequence[str] = (),
        chat: bool = False,
        chat_template: str | None = None,
        strict: bool = False,
    ) -> None:
        others = dict(opponents or {})
        strangers = [player for player in others if player not in range(players)]
        if strangers or len(others) >= players:
            raise ValueError(
                f"opponents={sorted(others, key=str)} of {players} players: name some of the players 0 to "
                f"{players - 1}, and leave at least one to the model"
            )
        if isinstance(stop_strings, str):
            raise TypeError("stop_strings is a list of strings; put the single one in a list")
        self.make_game = make_game
        self.players = players
        self.max_turns = max_turns
        self.strict = strict
        template = ChatTemplate(tokenizer, chat_template) if chat or chat_template is not None else None

        def display(writes: Any) -> Display:
            settings = {} if generation_kwargs is None else generation_kwargs
            sampler = sampler_of(writes, tokenizer)
            return Display(TurnWriter(sampler, tokenizer, settings, max_length, stop_strings), template)

        own = display(model)
        self.displays = {
            player: display(others[player]) if _is_model(others.get(player)) else own for player in range(players)
        }
        self.functions = {player: other for player, other in others.items() if not _is_model(other)}
        self.learners = [player for player in range(players) if player not in others]

    def run(self, tasks: Sequence[Any], n: int = 1) -> Episodes:
        """Play `n` games per task.

        Args:
            tasks: the seed of each game.
            n: games with each seed.

        Returns:
            the episodes of the players that are the model, game by game; those of one task and player have the same
            number in `group_ids`, and `infos` of each turn say which `player` it was. A player that had no turn has no
            episode.

        Raises:
            TypeError, ValueError: a first observation has the wrong type or no tokens.
        """
        if n < 1:
            raise ValueError(f"n={n} games per task; give 1 or more")
        tables = []
        for number, task in enumerate(tasks):
            for _ in range(n):
                game = self.make_game()
                game.reset(num_players=self.players, seed=task)
                tables.append(_Seats(game, number))
        for _ in range(self.max_turns):
            if not any(table.open for table in tables):
                break
            self._turn([table for table in tables if table.open])
        for table in tables:
            if table.open:
                self._end(table, truncated=True)
        episodes = [table.episodes[player] for table in tables for player in self.learners if player in table.episodes]
        _warn(episodes)
        return Episodes.of(episodes)

    def _turn(self, tables: list[_Seats]) -> None:
        """One turn of the player whose turn it is, in each game."""
        movers: dict[int, list[tuple[_Seats, Episode]]] = {}
        for table in tables:
            outcome = in_words(outcome_of(table.game.get_observation))
            if outcome.error is not None:
                self._fail(table, outcome)
                continue
            player, observation = outcome.value
            movers.setdefault(player, []).append((table, self._seen(table, player, observation)))
        for player, pairs in movers.items():
            for (table, episode), said in zip(pairs, self._answers(player, [e for _, e in pairs]), strict=True):
                if said is None:  # no room for another token
                    self._end(table, truncated=True)
                    continue
                outcome, price = in_words(outcome_of(partial(table.game.step, said))), 0.0
                if isinstance(outcome.exception, UnreadableAction):  # the same player is asked again
                    price = outcome.exception.price
                    table.unread[player] = outcome.exception.message
                    outcome = Outcome((False, {"unreadable": said}))
                if outcome.error is not None:
                    self._fail(table, outcome)
                    continue
                over, info = outcome.value
                episode.rewards.append((len(episode.history.tokens) - 1, -price))
                episode.infos.append({"player": player, **(info or {})})
                if over:
                    self._end(table, truncated=False)

    def _seen(self, table: _Seats, player: int, observation: Observation) -> Episode:
        """The player's episode, with the observation."""
        episode, unread = table.episodes.get(player), table.unread.pop(player, None)
        if unread is not None:
            observation = _joined(unread, observation)
        if episode is None:
            group = table.number * self.players + player
            episode = Episode(table.game, group, *self.displays[player].begin(observation))
            table.episodes[player] = episode
        else:
            self.displays[player].show(episode.history, episode.prompt, observation)
        return episode

    def _answers(self, player: int, episodes: list[Episode]) -> list[str | None]:
        """What the player says in each game; None where there is no room for it."""
        display, function = self.displays[player], self.functions.get(player)
        if function is not None:
            for episode in episodes:
                answer = str(function(episode.history.text))
                display.writer.append_turn(episode.history, display.writer.tokenize(answer, special_tokens=False))
            return [display.said(episode.history) for episode in episodes]
        wrote = {id(history) for history in display.writer.write_turns([e.history for e in episodes])}
        return [display.said(e.history) if id(e.history) in wrote else None for e in episodes]

    def _end(self, table: _Seats, truncated: bool) -> None:
        """Close the game, and give each player its reward."""
        table.open = False
        outcome = in_words(outcome_of(table.game.close))
        if outcome.error is not None:
            self._fail(table, outcome)
            return
        rewards = outcome.value[0] or {}
        for player, episode in table.episodes.items():
            if episode.rewards:
                position, price = episode.rewards[-1]
                episode.rewards[-1] = (position, price + float(rewards.get(player, 0.0)))
            episode.history.complete(truncated=truncated)

    def _fail(self, table: _Seats, outcome: Outcome) -> None:
        """The game did something wrong: its episodes end."""
        if self.strict and outcome.exception is not None:
            raise outcome.exception
        table.open = False
        for episode in table.episodes.values():
            episode.error = f"turn {len(episode.infos)}: {outcome.error}"
            episode.history.complete(truncated=True)


def _joined(first: Observation, second: Observation) -> Observation:
    """Both observations as one."""
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    both: list[Any] = []
    for one in (first, second):
        if isinstance(one, str):
            both.append({"role": "user", "content": one})
        else:
            both += [one] if isinstance(one, Mapping) else one
    return both


def _is_model(opponent: Opponent) -> bool:
    return isinstance(opponent, (torch.nn.Module, Sampler))


def _warn(episodes: list[Episode]) -> None:
    failed = [f"{i} ({episode.error})" for i, episode in enumerate(episodes) if episode.error is not None]
    if failed:
        warnings.warn(
            f"{len(failed)} of {len(episodes)} episodes ended early because their game failed: "
            f"{', '.join(failed[:4])}; leave them out with episodes.without_failed()",
            UserWarning,
            stacklevel=3,
        )
