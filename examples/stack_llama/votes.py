"""The votes of an answer, from its text alone, and questions as rows for the trainers that draw answers themselves.

python examples/stack_llama/votes.py     # prints a few answers with the votes that they got and those read off
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset

sys.path.append(str(Path(__file__).resolve().parent))
from common import HUB_POSTS, load_posts, prompt_of, sample_of
from posts import PARTS, TASKS, WRONG, write_pairs

SOLUTIONS = "|".join(re.escape(solution) for _, _, solution in TASKS)


def _pattern(template: str) -> str:
    return re.sub(r"\\\{\w+\\\}", f"(?:{SOLUTIONS}|\\\\w+)", re.escape(template))


POINTS = [
    (points, re.compile(_pattern(text)))
    for kinds in PARTS.values()
    for points, _, texts in kinds
    for text in texts
    if text and WRONG not in text
]
"""Points of each sentence that an answer may have. Which solution is wrong depends on the question: they count 0."""


def votes_of(text: str) -> float:
    """The points of the sentences in a text, each counted once."""
    return float(sum(points for points, pattern in POINTS if pattern.search(text)))


def score_votes(prompts: list[str], completions: list[str]) -> list[float]:
    """A reward function."""
    return [votes_of(answer) for answer in completions]


def questions(tokenizer: Any, subset: str, count: int | None = None) -> Dataset:
    """Rows with `input_ids` of different questions of a subset such as "data/rl"."""
    asked = sorted(set(load_posts(HUB_POSTS, subset, small=True)["question"]))
    asked = asked if count is None else sample_of(asked, count)
    return Dataset.from_dict({"input_ids": [tokenizer(prompt_of(question))["input_ids"] for question in asked]})


def rise_of(history: list[dict[str, float]], count: int = 5) -> str:
    """The mean score of the first and of the last steps."""
    scores = [entry["objective/scores"] for entry in history if "objective/scores" in entry]
    first, last = scores[:count], scores[-count:]
    return f"mean score {sum(first) / len(first):.2f} -> {sum(last) / len(last):.2f} in {len(scores)} steps"


if __name__ == "__main__":
    for pair in write_pairs(5, seed=0):
        for answer, votes in ((pair.response_j, pair.votes_j), (pair.response_k, pair.votes_k)):
            print(f"{votes:+d} {votes_of(answer):+.0f} {answer}")
