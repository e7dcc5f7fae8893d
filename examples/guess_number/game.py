"""Guess the number: an environment of many turns whose best play is known."""

from __future__ import annotations

import random
from math import log2
from typing import Any

HIGHEST = 15
MOST_GUESSES = 7
BEST_MEAN = 49 / 15
"""Mean number of guesses of the best player, who halves the remaining numbers: one number needs 1 guess, two need 2,
four 3 and eight 4."""

RULES = f"I think of a number from 1 to {HIGHEST}.\n"


def answer(higher: bool, low: int, high: int) -> str:
    """The reply to a wrong guess."""
    return f"{'higher' if higher else 'lower'}, {low} to {high}\n"


class GuessTheNumber:
    """`reset(secret)` and `step(text)`.

    A guess costs 1 and earns the number of halvings that it achieves: the reward of a turn is -1 + log2 of (possible
    numbers before + 1) / (possible numbers after + 1). Over a game this adds up to a constant minus the number of
    guesses, so the best play is still that with the fewest guesses (potential-based shaping, Ng et al. 1999); but each
    guess gets its own reward: halving the remaining numbers gives 0. Anything but a number ends the game.
    """

    def reset(self, task: Any) -> str:
        """Begin; `task` is the secret number."""
        self.secret, self.low, self.high = int(task), 1, HIGHEST
        return RULES

    def step(self, action_text: str) -> tuple[str, float, bool, dict[str, Any]]:
        """The answer, the reward of this guess, whether the game is over, and the guess."""
        word = action_text.strip()
        if not (word.isascii() and word.isdigit() and len(word) <= 3):
            return "", -4.0, True, {"guess": None}
        guess, before = int(word), self.high - self.low + 1
        if guess == self.secret:
            return "", -1 + log2(before + 1), True, {"guess": guess}
        if guess < self.secret:
            self.low = max(self.low, guess + 1)
        else:
            self.high = min(self.high, guess - 1)
        worth = log2((before + 1) / (self.high - self.low + 2))
        return answer(guess < self.secret, self.low, self.high), worth - 1, False, {"guess": guess}


def guesses_needed(infos: list[dict[str, Any]], secret: int) -> int:
    """Number of guesses up to the right one; one more than allowed if it was not found."""
    return len(infos) if infos[-1].get("guess") == secret else MOST_GUESSES + 1


def write_game(random_numbers: random.Random) -> str:
    """A game of a random player, who names any number that is still possible."""
    secret, low, high, lines = random_numbers.randint(1, HIGHEST), 1, HIGHEST, [RULES]
    while True:
        guess = random_numbers.randint(low, high)
        lines.append(f"{guess}\n")
        if guess == secret:
            return "".join(lines)
        if guess < secret:
            low = guess + 1
        else:
            high = guess - 1
        lines.append(answer(guess < secret, low, high))
