"""`GameRunner`: games of two players, the policy on both sides or one; TextArena's and PettingZoo's real packages."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.environment.environment_tools import ScriptedModel, byte_tokenizer, tiny_gpt2
from trl_step.environment import GameRunner, UnreadableAction
from trl_step.environment.adapters import PettingZooGame, TextArenaGame


class Count:
    """Two players count to the task in turn; who says the last number wins. Other words have their own meaning."""

    def reset(self, num_players: int, seed: Any = None) -> None:
        self.number, self.last, self.player, self.rewards = 0, seed, 0, None

    def get_observation(self) -> tuple[int, str]:
        return self.player, f"{self.number}:"

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        if action == "raise":
            raise KeyError("boom")
        if action == "what":
            raise UnreadableAction("a number!", 0.25)
        self.number += 1
        if self.number == self.last:
            self.rewards = {self.player: 1.0, 1 - self.player: -1.0}
        self.player = 1 - self.player
        return self.number == self.last, {"said": action}

    def close(self) -> Any:
        return self.rewards, {}


def runner(answer: Any, make_game: Any = Count, **options: Any) -> GameRunner:
    tokenizer = byte_tokenizer()
    settings = {"generation_kwargs": {"max_new_tokens": 12}} | options
    return GameRunner(ScriptedModel(answer, tokenizer), tokenizer, make_game, **settings)


def test_each_player_has_an_episode_of_its_own() -> None:
    run = runner(lambda text: {"0:": "a", "1:": "bc", "2:": "d"}[text[-2:]])
    episodes = run.run([3])
    first, second = (history.text for history in episodes.histories)
    assert first == "0:a</s>2:d</s>"
    assert second == "1:bc</s>"
    assert episodes.turn_rewards == [[0.0, 1.0], [-1.0]]
    assert episodes.rewards[1].tolist() == [0.0, 0.0, -1.0]
    assert episodes.group_ids == [0, 1]
    assert episodes.infos == [[{"player": 0, "said": "a"}, {"player": 0, "said": "d"}], [{"player": 1, "said": "bc"}]]
    assert episodes.truncated == [False, False]


def test_games_of_several_lengths_and_groups() -> None:
    run = runner(lambda text: "x")
    episodes = run.run([1, 2], n=2)
    assert episodes.group_ids == [0, 0, 2, 3, 2, 3], "a player that had no turn has no episode"
    assert [sum(rewards) for rewards in episodes.turn_rewards] == [1, 1, -1, 1, -1, 1]
    assert [len(texts) for texts in run.displays[0].writer.sampler.model.prompts] == [4, 2], "games play side by side"
    with pytest.raises(ValueError, match="n=0 episodes per task"):
        run.run([1], n=0)
    with pytest.raises(TypeError, match="run takes a list of tasks, got a str"):
        run.run("12")


def test_a_function_plays_the_other_side() -> None:
    seen: list[str] = []

    def other(text: str) -> str:
        seen.append(text)
        return f"o{len(seen)}"

    run = runner(lambda text: "x", opponents={1: other})
    episodes = run.run([4])
    assert len(episodes.queries) == 1
    assert seen == ["1:", "1:o13:"]
    assert episodes.histories[0].text == "0:x</s>2:x</s>"
    assert episodes.turn_rewards == [[0.0, -1.0]]


def test_a_fixed_model_plays_the_other_side() -> None:
    other = ScriptedModel(lambda text: "no", byte_tokenizer())
    episodes = runner(lambda text: "x", opponents={0: other}).run([3])
    assert [info["said"] for info in episodes.infos[0]] == ["x"]
    assert len(other.prompts) == 2
    assert runner(lambda text: "x", opponents={0: tiny_gpt2()}).run([2]).turn_rewards == [[1.0]]


def test_an_answer_that_cannot_be_read_costs_and_the_same_player_is_asked_again() -> None:
    words = iter(["what", "a", "b", "what", "c"])
    episodes = runner(lambda text: next(words)).run([3])
    assert episodes.histories[0].text == "0:what</s>a number!0:a</s>2:what</s>a number!2:c</s>"
    assert episodes.turn_rewards == [[-0.25, 0.0, -0.25, 1.0], [-1.0]]
    words = iter(["a", "b", "c", "what"])
    cut = runner(lambda text: next(words), max_turns=4).run([9])
    assert cut.turn_rewards == [[0.0, 0.0], [0.0, -0.25]]
    assert cut.truncated == [True, True]


def test_a_game_that_fails_ends_its_own_episodes() -> None:
    run = runner(lambda text: "raise" if text.endswith("2:") else "x")
    with pytest.warns(UserWarning, match="2 of 3 episodes ended early because their game failed"):
        episodes = run.run([1, 4])
    assert episodes.errors[0] is None
    assert all(str(error).startswith("turn 1: KeyError: 'boom'") for error in episodes.errors[1:])
    assert len(episodes.without_failed().queries) == 1
    strict = runner(lambda text: "raise", strict=True)
    with pytest.raises(KeyError, match="boom"):
        strict.run([4])


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a player that is none": (
        {"get_observation": lambda game: (2, "o")},
        "returned (2, 'o'); it must return (player, obs",
    ),
    "no player": ({"get_observation": lambda game: "o"}, "get_observation returned 'o'; it must return (player, obs"),
    "a number to see": ({"get_observation": lambda game: (game.player, 3)}, "an observation is a text, got int"),
    "an end in words": ({"step": lambda game, action: ("no", {})}, "returned ('no', {}); over is True or False, and"),
    "swapped": ({"step": lambda game, action: ({}, False)}, "returned ({}, False); over is True or False, and info a"),
    "no info": ({"step": lambda game, action: True}, "step returned True; it must return (over, info)"),
    "an info that is none": ({"step": lambda game, action: (True, ["i"])}, "over is True or False, and info a dictio"),
    "players in words": (
        {"close": lambda game: ({"0": 1.0}, {})},
        "close returned ({'0': 1.0}, {}); it must return ({p",
    ),
    "a list of rewards": (
        {"close": lambda game: ([1.0, -1.0], {})},
        "close returned ([1.0, -1.0], {}); it must return",
    ),
    "a reward that is none": (
        {"close": lambda game: ({1: float("nan")}, {})},
        "close returned the reward nan; a reward",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_game_does_wrong_ends_its_own_episodes(name: str) -> None:
    methods, message = WRONG[name]

    def sometimes(method: str, wrong: Any) -> Any:
        def act(game: Any, *given: Any) -> Any:
            bad = game.last == 4 and game.number == (4 if method == "close" else 2)
            return wrong(game, *given) if bad else getattr(Count, method)(game, *given)

        return act

    kind = type("Wrong", (Count,), {method: sometimes(method, wrong) for method, wrong in methods.items()})
    with pytest.warns(UserWarning, match="of 4 episodes ended early because their game failed"):
        episodes = runner(lambda text: "x", kind).run([4, 2])
    assert all(message in str(error) for error in episodes.errors[:2])
    assert episodes.errors[2:] == [None, None]
    assert episodes.turn_rewards[2:] == [[-1.0], [1.0]]
    with pytest.raises((ValueError, TypeError)):
        runner(lambda text: "x", kind, strict=True).run([4, 2])


def test_every_game_is_closed_once() -> None:
    closed: list[Any] = []

    class Closing(Count):
        def close(self) -> Any:
            closed.append(self)
            return super().close()

    with pytest.warns(UserWarning, match="4 of 5 episodes ended early"):
        runner(lambda text: "raise" if text.endswith("1:") else "x", Closing).run([2, 9, 1])
    with pytest.raises(KeyError):
        runner(lambda text: "raise", Closing, strict=True).run([3, 3])
    assert len(closed) == len({id(game) for game in closed}) == 5


def test_an_opponent_that_fails_ends_its_own_game() -> None:
    def other(text: str) -> Any:
        return {"1:": "x", "1:x3:": None, "2:": 1}[text]

    with pytest.warns(UserWarning, match=r"turn 2: TypeError: the opponent 1 answered None; it must answer a text"):
        episodes = runner(lambda text: "x", opponents={1: other}).run([2, 9])
    assert [error is None for error in episodes.errors] == [True, False]
    with pytest.warns(UserWarning, match=r"ZeroDivisionError: division by zero .*test_game_runner"):
        runner(lambda text: "x", opponents={1: lambda text: 1 / 0}).run([2])


def test_a_game_that_a_limit_ended_is_truncated() -> None:
    class Short(Count):
        truncated = False

        def step(self, action: str) -> Any:
            over, info = super().step(action)
            self.truncated = not over and self.number == 3
            return over or self.truncated, info

    assert runner(lambda text: "x", Short).run([9, 3]).truncated == [True, True, False, False]


def test_room() -> None:
    episodes = runner(lambda text: "xyz", max_length=12).run([9])
    assert all(episodes.truncated)
    assert all(len(q) + len(r) <= 12 for q, r in zip(episodes.queries, episodes.responses, strict=True))
    assert episodes.without_failed().errors == [None, None]


def test_bad_settings_are_named() -> None:
    for others in ({2: str}, {0: str, 1: str}):
        with pytest.raises(ValueError, match="name some of the players 0 to 1"):
            runner(str, opponents=others)
    with pytest.raises(TypeError, match="put the single one in a list"):
        runner(str, stop_strings="\n")
    for other in (None, "x"):
        with pytest.raises(
            TypeError, match=f"the opponent 1 is a {type(other).__name__}; give a function from text to"
        ):
            runner(str, opponents={1: other})
    with pytest.raises(TypeError, match="opponents is a dictionary, player to opponent, got a list"):
        runner(str, opponents=[str])
    with pytest.raises(TypeError, match="make_game is a class or function that creates a game, got a Count"):
        runner(str, Count())
    for number in (0, 1.5, "2"):
        with pytest.raises(ValueError, match=f"max_turns={number!r} must be a whole number, at least 1"):
            runner(str, max_turns=number)
        with pytest.raises(ValueError, match=f"players={number!r} must be a whole number, at least 1"):
            runner(str, players=number)


# --- other packages --------------------------------------------------------------------------------------------------


def test_textarena_with_both_players() -> None:
    """X needs three turns in the middle row; O fills the top one too late."""
    pytest.importorskip("textarena")
    moves = {0: iter(["[3]", "[4]", "[5]"]), 1: iter(["[0]", "[1]"])}

    def play(text: str) -> str:
        return next(moves[int(text.split("You are Player ")[1][0])])

    run = runner(play, partial(TextArenaGame, "TicTacToe-v0"))
    episodes = run.run([7])
    assert [sum(rewards) for rewards in episodes.turn_rewards] == [1.0, -1.0]
    assert [len(rewards) for rewards in episodes.turn_rewards] == [3, 2]
    first, second = (history.text for history in episodes.histories)
    assert "Player 1 placed their symbol (X) in cell 0." in first
    assert "[0]" in second.replace("'[0]'", ""), "the player's own move stands in its episode"
    assert first.replace("'[3]'", "").count("[3]") == 1, "and is not shown to it again"


def test_textarena_against_a_function() -> None:
    pytest.importorskip("textarena")
    moves = iter(["[0]", "[1]", "[2]"])
    run = runner(lambda text: "[9]", partial(TextArenaGame, "TicTacToe-v0"), opponents={0: lambda text: next(moves)})
    episodes = run.run([7])
    assert [sum(rewards) for rewards in episodes.turn_rewards] == [-1.0], "two moves that are none lose"
    with pytest.raises(ValueError, match="not found in registry"):
        runner(str, partial(TextArenaGame, "NoSuchGame-v0")).run([0])


def test_a_textarena_game_that_reports_moves_with_a_number_in_place_of_the_text() -> None:
    """Its second turn failed: "expected str instance, int found"."""
    pytest.importorskip("textarena")
    episodes = runner(lambda text: "[0 1 +]", partial(TextArenaGame, "Countdown-v0"), players=1, max_turns=3).run([7])
    assert episodes.errors == [None]
    assert len(episodes.turn_rewards[0]) > 1


def subtraction(limit: int = 9) -> Any:
    """A game of PettingZoo: from 5, take 1 or 2 in turn; the last one wins 1, the other loses 1. A move costs 0.125."""
    pettingzoo = pytest.importorskip("pettingzoo")

    class Subtraction(pettingzoo.AECEnv):
        metadata = {"name": "subtraction_v0"}  # noqa: RUF012

        def __init__(self) -> None:
            super().__init__()
            self.possible_agents = ["first", "second"]
            self.render_mode = None
            self.seen, self.taken = gymnasium.spaces.Discrete(6), gymnasium.spaces.Discrete(2)

        def observation_space(self, agent: str) -> Any:
            return self.seen

        def action_space(self, agent: str) -> Any:
            return self.taken

        def observe(self, agent: str) -> Any:
            return np.int64(self.left)

        def reset(self, seed: Any = None, options: Any = None) -> None:
            self.agents, self.left, self.moves = self.possible_agents[:], 5, 0
            self.rewards = dict.fromkeys(self.agents, 0.0)
            self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
            self.terminations = dict.fromkeys(self.agents, False)
            self.truncations = dict.fromkeys(self.agents, False)
            self.infos = {agent: {} for agent in self.agents}
            self.agent_selection = "first"

        def step(self, action: Any) -> None:
            if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
                return self._was_dead_step(action)
            agent = self.agent_selection
            other = "second" if agent == "first" else "first"
            self._cumulative_rewards[agent] = 0.0
            self.left = max(0, self.left - 1 - action)
            self.rewards = {agent: -0.125, other: 0.0}
            if self.left == 0:
                self.rewards = {agent: 0.875, other: -1.0}
                self.terminations = dict.fromkeys(self.agents, True)
            self.moves += 1
            self.truncations = dict.fromkeys(self.agents, self.moves == limit)
            self.agent_selection = other
            self._accumulate_rewards()
            return None

    return pettingzoo.utils.wrappers.OrderEnforcingWrapper(Subtraction())


def take(text: str) -> int:
    if text not in ("1", "2"):
        raise UnreadableAction("1 or 2! ", 0.5)
    return int(text) - 1


def test_pettingzoo_in_turn() -> None:
    pytest.importorskip("pettingzoo")
    from pettingzoo.test import api_test

    api_test(subtraction(), num_cycles=20)
    words = iter(["2", "three", "1", "2"])
    make = lambda: PettingZooGame(subtraction(), lambda left: f"{left} left, you take: ", take)  # noqa: E731
    episodes = runner(lambda text: next(words), make).run([1])
    assert episodes.histories[0].text == "5 left, you take: 2</s>2 left, you take: 2</s>"
    assert episodes.histories[1].text == "3 left, you take: three</s>1 or 2! 3 left, you take: 1</s>"
    assert [sum(rewards) for rewards in episodes.turn_rewards] == [0.75, -0.5 - 1.125]
    assert episodes.truncated == [False, False]
    cut = lambda: PettingZooGame(subtraction(2), str, take)  # noqa: E731
    assert runner(lambda text: "1", cut).run([1]).truncated == [True, True], "two moves are its limit"
    both = lambda: PettingZooGame(subtraction(3), str, take)  # noqa: E731
    assert runner(lambda text: "2", both).run([1]).truncated == [False, False], "an end is an end"
    with pytest.raises(ValueError, match="the game has 2 players, not 3"):
        runner(str, make, players=3).run([1])
