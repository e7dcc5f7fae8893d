"""Gymnasium's frozen lake in words: what the model sees, and what its answers mean."""

from __future__ import annotations

import random

import gymnasium

from trl_step.environment import UnreadableAction

ENVIRONMENT = "FrozenLake-v1"
SIZE = 4
NUMBERS = ("one", "two", "three", "four")
DIRECTIONS = ("left", "down", "right", "up")
"""in the order of Gymnasium's actions"""
PRICE = 0.05
"""of an answer that is no direction"""


def make_lake() -> gymnasium.Env:
    """The map of four by four fields; a step goes where it is meant to."""
    return gymnasium.make(ENVIRONMENT, is_slippery=False)


def to_text(field: int) -> str:
    """Field 6 is `row two column three`."""
    row, column = divmod(int(field), SIZE)
    return f"row {NUMBERS[row]} column {NUMBERS[column]}\n"


def to_action(text: str) -> int:
    """The direction that the answer names; anything else costs a little, and the model may try again."""
    word = text.strip()
    if word not in DIRECTIONS:
        raise UnreadableAction("say left, down, right or up\n", PRICE)
    return DIRECTIONS.index(word)


def write_walk(random_numbers: random.Random, turns: int) -> str:
    """A walk of a player who goes anywhere with equal chances, and sometimes says something else."""
    lines = []
    for _ in range(turns):
        lines.append(to_text(random_numbers.randrange(SIZE * SIZE)))
        if random_numbers.random() < 0.05:
            lines.append("column\nsay left, down, right or up\n")
        lines.append(f"{random_numbers.choice(DIRECTIONS)}\n")
    return "".join(lines)
