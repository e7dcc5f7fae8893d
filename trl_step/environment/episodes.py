"""Episodes: what an `EnvironmentRunner` keeps while it plays one, and what it returns of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from trl_step.algorithms.advantages.group import grpo_advantages
from trl_step.data.chat_template import Message
from trl_step.environment.text_history import TextHistory
from trl_step.models.notices import warn_user


@dataclass
class Episode:
    """An episode that is being played."""

    environment: Any
    group: int
    """number of its task"""
    history: TextHistory
    prompt: list[Message]
    """the messages of the first observation; empty without a chat template"""
    rewards: list[tuple[int, float]] = field(default_factory=list)
    """position in `history.tokens` and reward of each turn"""
    infos: list[dict[str, Any]] = field(default_factory=list)
    error: str | None = None

    @property
    def query_length(self) -> int:
        """Tokens of the first observation."""
        return self.history.token_spans[0][1]

    def reward_vector(self) -> torch.Tensor:
        """A reward for every response token [R] float32, the reward of a turn on its last token."""
        tokens = self.history.tokens
        rewards = torch.zeros(len(tokens), device=tokens.device)
        for position, reward in self.rewards:
            rewards[position] = reward
        return rewards[self.query_length :]


class Episodes(NamedTuple):
    """Played episodes, ready for `trainer.step(queries, responses, rewards, masks, truncated=...)`.

    Each list has one entry per episode. `queries` [Q] and `responses` [R] int64; `masks` [R] int64, 1 on the model's
    tokens; `rewards` [R] float32, each turn's reward on the last token that the model wrote in it; `infos`: the
    dictionary that `step` returned for each turn; `errors`: what the environment did wrong, or None; `group_ids`: the
    number of the episode's task; `turn_ends`: the index in the response of each turn's last token.
    """

    queries: list[torch.Tensor]
    responses: list[torch.Tensor]
    masks: list[torch.Tensor]
    rewards: list[torch.Tensor]
    histories: list[TextHistory]
    infos: list[list[dict[str, Any]]]
    errors: list[str | None]
    group_ids: list[int]
    turn_ends: list[list[int]]

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Episodes:
        """Finished episodes; the `reward` of their histories becomes the sum of those of their turns."""
        for episode in episodes:
            episode.history.reward = sum(reward for _, reward in episode.rewards)
        split = [episode.history.split_query_response_tokens() for episode in episodes]
        return cls(
            [query for query, _, _ in split],
            [response for _, response, _ in split],
            [mask for _, _, mask in split],
            [episode.reward_vector() for episode in episodes],
            [episode.history for episode in episodes],
            [episode.infos for episode in episodes],
            [episode.error for episode in episodes],
            [episode.group for episode in episodes],
            [[position - episode.query_length for position, _ in episode.rewards] for episode in episodes],
        )

    @classmethod
    def joined(cls, runs: Sequence[Episodes]) -> Episodes:
        """The episodes of several runs one after the other; a task of one run and one of another are two groups."""
        columns: dict[str, list[Any]] = {name: [] for name in cls._fields}
        for run in runs:
            first = max(columns["group_ids"], default=-1) + 1
            moved = run._replace(group_ids=[first + group for group in run.group_ids])
            for name, column in moved._asdict().items():
                columns[name] += column
        return cls(**columns)

    @property
    def truncated(self) -> list[bool]:
        """Whether each episode was cut off, by the environment, by `max_turns` or by `max_length`."""
        return [history.truncated for history in self.histories]

    @property
    def turn_rewards(self) -> list[list[float]]:
        """The reward of each turn of each episode."""
        return [
            [float(reward) for reward in rewards[ends]]
            for rewards, ends in zip(self.rewards, self.turn_ends, strict=True)
        ]

    def turn_advantages(self, gamma: float = 1.0, scale: str = "std") -> list[torch.Tensor]:
        """Advantages of turns without a critic, for `trainer.step(advantages=...)`: each [R] float32.

        The return of a turn, G_k = r_k + gamma G_{k+1}, is compared with those of the same turn in the other episodes
        of the task; see `grpo_advantages`. All tokens of a turn have its advantage; a turn that no other episode of the
        task has, has 0. If that is true of all turns, a warning says so.

        Args:
            gamma: discount per turn
            scale: what the differences are divided by: `std`, `batch` or `none`
        """
        returns: list[float] = []
        for rewards in self.turn_rewards:
            backwards, following = [], 0.0
            for reward in reversed(rewards):
                following = reward + gamma * following
                backwards.append(following)
            returns += reversed(backwards)
        turns = zip(self.group_ids, self.turn_ends, strict=True)
        names = [(group, turn) for group, ends in turns for turn in range(len(ends))]
        numbers: dict[tuple[int, int], int] = {}
        if names and len(set(names)) == len(names):
            warn_user(
                "no turn has another one of its task to be compared with, so all advantages are 0: play several "
                "episodes of each task, as in run(tasks, n=4)"
            )
        groups = torch.tensor([numbers.setdefault(name, len(numbers)) for name in names], dtype=torch.long)
        of_turns = iter(grpo_advantages(torch.tensor(returns), groups, scale).tolist() if returns else [])
        advantages = []
        for mask, ends in zip(self.masks, self.turn_ends, strict=True):
            vector = torch.zeros(mask.shape, device=mask.device)
            for start, end in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=False):
                vector[start : end + 1] = next(of_turns)
            advantages.append(vector * mask)
        return advantages

    def without_failed(self) -> Episodes:
        """Only the episodes in which the environment did not fail and the model had a turn."""
        good = [error is None and bool(mask.any()) for error, mask in zip(self.errors, self.masks, strict=True)]
        columns: Any = ([item for item, keep in zip(column, good, strict=True) if keep] for column in self)
        return Episodes(*columns)
