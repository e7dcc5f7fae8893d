"""Nim with one heap: a game of two players whose best play is known, with the interface of TextArena."""

from __future__ import annotations

import random
import re
from typing import Any

SMALLEST, LARGEST = 5, 12
MOST = 3


class Nim:
    """The players take one to three from a heap in turn; who takes the last one wins.

    A heap that four divides is lost against the best player, who always leaves such a heap. A move that is not possible
    loses at once.
    """

    def reset(self, num_players: int = 2, seed: Any = None) -> None:
        """Begin; `seed` decides how large the heap is."""
        self.heap = random.Random(seed).randint(SMALLEST, LARGEST)
        self.player, self.rewards = 0, None

    def get_observation(self) -> tuple[int, str]:
        """Whose turn it is, and the heap."""
        return self.player, f"heap {self.heap}\n"

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        """Take so many; returns whether the game is over, and whether the move was a best one."""
        word, heap = action.strip(), self.heap
        number = int(word) if re.fullmatch(f"[1-{MOST}]", word) else 0
        info = {"heap": heap, "taken": number, "best": number in best_moves(heap)}
        if not 1 <= number <= heap:
            self.rewards = {self.player: -1.0, 1 - self.player: 1.0}
            return True, info
        self.heap -= number
        if self.heap == 0:
            self.rewards = {self.player: 1.0, 1 - self.player: -1.0}
        self.player = 1 - self.player
        return self.heap == 0, info

    def close(self) -> tuple[dict[int, float] | None, dict[str, Any]]:
        """The rewards of both players: 1 for the winner, -1 for the loser."""
        return self.rewards, {}


def best_moves(heap: int) -> set[int]:
    """The moves that win against every play; none if the heap is lost."""
    return {heap % (MOST + 1)} - {0}


def random_move(text: str) -> str:
    """A player who takes any number that is possible, from the text that he has seen."""
    heap = int(re.findall(r"heap (\d+)", text)[-1])
    return f"{random.randint(1, min(MOST, heap))}\n"


def write_game(random_numbers: random.Random) -> str:
    """What one of two such players sees and says."""
    heap, player, lines = random_numbers.randint(SMALLEST, LARGEST), random_numbers.randrange(2), []
    while heap > 0:
        taken = random_numbers.randint(1, min(MOST, heap))
        if player == 0:
            lines.append(f"heap {heap}\n{taken}\n")
        heap, player = heap - taken, 1 - player
    return "".join(lines) or write_game(random_numbers)
