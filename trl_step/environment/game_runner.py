"""Games of several players, played by a language model on both sides, or against others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from trl_step.data.chat_template import ChatTemplate
from trl_step.environment.display import Display
from trl_step.environment.episodes import Episode, Episodes
from trl_step.environment.protocol import (
    Observation,
    UnreadableAction,
    check_turns,
    flag,
    one_number,
    tasks_and_groups,
    whole_number,
)
from trl_step.environment.text_history import TextHistory
from trl_step.environment.turns import TurnWriter, sampler_of
from trl_step.models.notices import described
from trl_step.sampling.sampler import Sampler

Opponent = Any
"""A function from what the player has seen and said so far, one text, to its answer; or a model, or a `Sampler`."""


class Game(Protocol):
    """A game in turns, one object per game. The names are TextArena's.

    A game that is over because of a limit, and would have gone on, has an attribute `truncated` that is True then.
    """

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

    def close(self) -> Any:
        """What the game's `close` returns; it is called once."""
        if not self.open:
            return None
        self.open = False
        return self.game.close()


class GameError(ValueError):
    """A game returned the wrong thing."""


class GameRunner:
    """Lets a language model play a batch of games with several players. Each player has an episode of its own.

    ```python
    runner = GameRunner(model, tokenizer, Nim, generation_kwargs={"max_new_tokens": 4})
    episodes = runner.run(range(8), n=2)
    trainer.step(episodes.queries, episodes.responses, episodes.rewards, episodes.masks)
    ```

    A player's episode begins with what it sees at its first turn; what others did stands, masked, between its own
    turns. Its reward in the game is on the last token of its last turn.

    A failing game ends its own episodes and no others: one of its methods or an opponent's function raises, or returns
    the wrong thing. A warning and `errors` of the episodes report it.

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
        strict: raise what a game raised, or a ValueError or TypeError about what it returned, instead of ending its
            episodes; the batch is lost.
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
        check_turns(max_turns)
        if not callable(make_game):
            raise TypeError(f"make_game is a class or function that creates a game, got a {type(make_game).__name__}")
        if (whole_number(players) or 0) < 1:
            raise ValueError(f"players={players!r} must be a whole number, at least 1")
        if opponents is not None and not isinstance(opponents, Mapping):
            raise TypeError(f"opponents is a dictionary, player to opponent, got a {type(opponents).__name__}")
        others = dict(opponents or {})
        strangers = [player for player in others if player not in range(players)]
        if strangers or len(others) >= players:
            raise ValueError(
                f"opponents={sorted(others, key=str)} of {players} players: name some of the players 0 to "
                f"{players - 1}, and leave at least one to the model"
            )
        for player, other in others.items():
            if not _is_model(other) and not callable(other):
                raise TypeError(
                    f"the opponent {player} is a {type(other).__name__}; give a function from text to answer, a model "
                    "or a Sampler, or leave it out if the policy plays it"
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
            TypeError, ValueError: the first observation of a game is wrong, or has no tokens; nothing has been played
                yet. What `reset` raises is raised as it is.
        """
        tables: list[_Seats] = []
        try:
            for task, number in zip(*tasks_and_groups(tasks, n), strict=True):
                tables.append(_Seats(self.make_game(), number))
                tables[-1].game.reset(num_players=self.players, seed=task)
            for _ in range(self.max_turns):
                if not any(table.open for table in tables):
                    break
                self._turn([table for table in tables if table.open])
            for table in tables:
                if table.open:
                    self._end(table, truncated=True)
        finally:
            for table in tables:  # those that something broke off
                with suppress(Exception):
                    table.close()
        episodes = [table.episodes[player] for table in tables for player in self.learners if player in table.episodes]
        _warn(episodes)
        return Episodes.of(episodes)

    def _turn(self, tables: list[_Seats]) -> None:
        """One turn of the player whose turn it is, in each game."""
        movers: dict[int, list[tuple[_Seats, Episode]]] = {}
        for table in tables:
            # a game that fails before the first turn has no episode that could say so
            with self._failing(table) if table.episodes else nullcontext():
                player, observation = self._asked(table)
                movers.setdefault(player, []).append((table, self._seen(table, player, observation)))
        for player, pairs in movers.items():
            wrote = self._wrote(player, [episode for _, episode in pairs])
            for table, episode in pairs:
                if episode.history in wrote:
                    with self._failing(table):
                        self._move(table, player, episode)
                else:  # no room for another token
                    self._end(table, truncated=True)

    def _asked(self, table: _Seats) -> tuple[int, Observation]:
        """Whose turn it is, and what this player sees."""
        asked = table.game.get_observation()
        player = whole_number(asked[0]) if isinstance(asked, tuple) and len(asked) == 2 else None
        if player is None or player not in range(self.players):
            raise GameError(
                f"get_observation returned {asked!r:.80}; it must return (player, observation), the players are 0 to "
                f"{self.players - 1}"
            )
        return player, asked[1]

    def _move(self, table: _Seats, player: int, episode: Episode) -> None:
        """What the player says is its move."""
        display, function = self.displays[player], self.functions.get(player)
        if function is not None:
            answer = function(episode.history.text)
            if not isinstance(answer, str):
                raise TypeError(f"the opponent {player} answered {answer!r:.80}; it must answer a text")
            display.writer.append_turn(episode.history, display.writer.tokenize(answer, special_tokens=False))
        said, price = display.said(episode.history), 0.0
        try:
            over, info = _moved(table.game.step(said))
        except UnreadableAction as error:  # the same player is asked again
            over, info, price = False, {"unreadable": said}, error.price
            table.unread[player] = error.message
        episode.rewards.append((len(episode.history.tokens) - 1, 0.0 - price))
        episode.infos.append({"player": player, **info})
        if over:
            self._end(table, truncated=bool(getattr(table.game, "truncated", False)))

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

    def _wrote(self, player: int, episodes: list[Episode]) -> list[TextHistory]:
        """The histories with another turn of the player; a function writes its own in `_move`."""
        histories = [episode.history for episode in episodes]
        return histories if player in self.functions else self.displays[player].writer.write_turns(histories)

    def _end(self, table: _Seats, truncated: bool) -> None:
        """Close the game, and give each player its reward."""
        with self._failing(table):
            rewards = _paid(table.close(), self.players)
            for player, episode in table.episodes.items():
                if episode.rewards:
                    position, price = episode.rewards[-1]
                    episode.rewards[-1] = (position, price + rewards.get(player, 0.0))
                episode.history.complete(truncated=truncated)

    @contextmanager
    def _failing(self, table: _Seats) -> Iterator[None]:
        """What a game or an opponent does wrong in here ends the game's episodes."""
        try:
            yield
        except (Exception, SystemExit) as error:
            if self.strict:
                raise
            own = isinstance(error, GameError)
            problem = f"{error} ({type(table.game).__name__})" if own else described(error)
            for episode in table.episodes.values():
                episode.error = f"turn {len(episode.infos)}: {problem}"
                episode.history.complete(truncated=True)
            with suppress(Exception):
                table.close()


def _moved(result: Any) -> tuple[bool, dict[str, Any]]:
    """What the `step` of a game returned, or a `GameError`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise GameError(f"step returned {result!r:.80}; it must return (over, info)")
    over, info = flag(result[0]), result[1]
    if over is None or not (info is None or isinstance(info, Mapping)):
        raise GameError(f"step returned {result!r:.80}; over is True or False, and info a dictionary")
    return over, dict(info or {})


def _paid(result: Any, players: int) -> dict[int, float]:
    """The rewards that the `close` of a game returned, or a `GameError`."""
    rewards = result[0] if isinstance(result, tuple) and len(result) == 2 else result
    if rewards is None:
        return {}
    if not isinstance(rewards, Mapping) or not set(rewards) <= set(range(players)):
        raise GameError(
            f"close returned {result!r:.80}; it must return ({{player: reward}}, info), the players are 0 to "
            f"{players - 1}"
        )
    paid = {player: one_number(reward) for player, reward in rewards.items()}
    wrong = [player for player, reward in paid.items() if reward is None]
    if wrong:
        raise GameError(f"close returned the reward {rewards[wrong[0]]!r:.80}; a reward is one finite number")
    return paid  # type: ignore[return-value]


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
