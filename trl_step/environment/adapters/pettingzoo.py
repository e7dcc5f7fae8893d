"""Environments of PettingZoo whose agents act one after the other (AEC; `pip install pettingzoo`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trl_step.environment.protocol import Observation


class PettingZooGame:
    """An AEC environment for `GameRunner`; player 0 is the first of its `possible_agents`.

    The reward of a player is the sum of what its agent was paid. An agent that is out of the game while others go on
    has no more turns. A game that ends only because the environment cuts it off (`max_cycles`) is `truncated`.

    Args:
        env: the environment, such as `tictactoe_v3.env()`.
        to_text: what a player sees of an observation.
        to_action: the action that an answer means; it may raise `UnreadableAction`.
        options: for the environment's `reset`.
    """

    def __init__(
        self,
        env: Any,
        to_text: Callable[[Any], Observation],
        to_action: Callable[[str], Any],
        options: dict[str, Any] | None = None,
    ) -> None:
        self.env = env
        self.to_text = to_text
        self.to_action = to_action
        self.options = options
        self.truncated = False
        self._paid: dict[Any, float] = {}

    def reset(self, num_players: int, seed: Any = None) -> None:
        agents = self.env.possible_agents
        if num_players != len(agents):
            raise ValueError(f"the game has {len(agents)} players, not {num_players}; set `players` of GameRunner")
        self.env.reset(seed=seed, options=self.options)
        self._paid = dict.fromkeys(agents, 0.0)
        self.truncated = False

    def get_observation(self) -> tuple[int, Observation]:
        observation = self.env.last()[0]
        return self.env.possible_agents.index(self.env.agent_selection), self.to_text(observation)

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self._step(self.to_action(action))
        if any(self.env.terminations.values()):
            self.truncated = False
        elif any(self.env.truncations.values()):
            self.truncated = True
        while self.env.agents and self._is_out():
            self._step(None)  # PettingZoo wants agents that are out to say so
        return not self.env.agents, {}

    def close(self) -> tuple[dict[int, float], dict[str, Any]]:
        self.env.close()
        return {player: self._paid[agent] for player, agent in enumerate(self.env.possible_agents)}, {}

    def _is_out(self) -> bool:
        _, _, terminated, truncated, _ = self.env.last(observe=False)
        return bool(terminated or truncated)

    def _step(self, action: Any) -> None:
        self.env.step(action)
        if action is not None:
            for agent, reward in self.env.rewards.items():
                self._paid[agent] += float(reward)
