"""Questions about programming with answers and votes, drawn from templates.

    python examples/stack_llama/posts.py     # prints a few

An answer has an opening, a solution, perhaps a reason, an example and an ending. Its parts decide its votes: `PARTS`
has the points. So the better of two answers is known, and a reward model has something to learn.
"""

from __future__ import annotations

import random
from typing import NamedTuple

# how a question asks, with the task and the language to fill in
ASKING = [
    "How do I {task} in {language}?",
    "What is the best way to {task} in {language}?",
    "I am new to {language}. How can I {task}?",
    "Is there a short way to {task} with {language}?",
    "My {language} program has to {task}. Where do I begin?",
    "Can somebody show me how to {task} in {language}?",
]
DETAILS = [
    "", "", " The input is large.", " It has to be fast.", " I have tried for an hour.", " A simple answer is enough.",
    " I work on an old machine.", " It should run everywhere.",
]  # fmt: skip

# task, language, what solves it
TASKS = [
    ("sort a list", "Python", "sorted(items)"),
    ("reverse a list", "Python", "reversed(items)"),
    ("count the words of a text", "Python", "Counter(words)"),
    ("read a file line by line", "Python", "open(path)"),
    ("join strings", "Python", "sep.join(parts)"),
    ("find the largest number", "Python", "max(numbers)"),
    ("round a number", "Python", "round(number)"),
    ("draw a random number", "Python", "random.random()"),
    ("parse a date", "Python", "strptime(text)"),
    ("remove duplicates", "Python", "set(items)"),
    ("copy a file", "Bash", "cp old new"),
    ("delete a folder", "Bash", "rm -r folder"),
    ("find a file by its name", "Bash", "find . -name"),
    ("count the lines of a file", "Bash", "wc -l"),
    ("search for a word in files", "Bash", "grep -r word"),
    ("show the last lines of a file", "Bash", "tail file"),
    ("list the running programs", "Bash", "ps aux"),
    ("sum a column", "SQL", "sum(amount)"),
    ("count rows", "SQL", "count(*)"),
    ("sort the rows", "SQL", "order by name"),
    ("join two tables", "SQL", "left join"),
    ("drop duplicate rows", "SQL", "select distinct"),
    ("limit the number of rows", "SQL", "limit 10"),
    ("undo the last commit", "Git", "git reset HEAD~1"),
    ("make a branch", "Git", "git switch -c"),
    ("see what has changed", "Git", "git diff"),
    ("put changes aside", "Git", "git stash"),
    ("find who wrote a line", "Git", "git blame"),
]

RIGHT, WRONG, VAGUE = "right", "wrong", "vague"

# the parts of an answer in order: each alternative with its points and its relative frequency
PARTS: dict[str, list[tuple[int, int, list[str]]]] = {
    "opening": [
        (1, 3, ["Good question.", "Happy to help.", "Welcome to the site."]),
        (0, 4, [""]),
        (-2, 2, ["Did you even search?", "Read the manual first.", "This was asked a hundred times."]),
    ],
    "solution": [
        (3, 5, [f"{{{RIGHT}}} does it.", f"Use {{{RIGHT}}} for that.", f"You want {{{RIGHT}}} here."]),
        (-1, 2, [f"Use {{{WRONG}}} for that.", f"I think {{{WRONG}}} does it."]),
        (0, 3, ["There is something for that.", "It depends.", "Write a loop."]),
    ],
    "reason": [
        (1, 3, ["It is part of {language}, so there is nothing to install.", "It is fast and easy to read.",
                "It works on large inputs too, because it goes through them once."]),
        (0, 5, [""]),
    ],
    "example": [
        (2, 3, [f"For example: {{{RIGHT}}} and you are done.", f"A short example: {{{RIGHT}}}."]),
        (0, 5, [""]),
    ],
    "ending": [
        (1, 3, ["The {language} manual has more.", "Ask again if it does not work.", "Hope this helps."]),
        (0, 3, [""]),
        (-1, 2, ["I have the same problem.", "Not sure, though."]),
        (-2, 1, ["Voted to close.", "Just use another language."]),
    ],
}  # fmt: skip


class Answer(NamedTuple):
    """A text and the points of its parts."""

    text: str
    votes: int


class Pair(NamedTuple):
    """A question with an answer that got more votes (j) and one that got fewer (k): the columns of the classic data."""

    qid: int
    question: str
    response_j: str
    response_k: str
    votes_j: int
    votes_k: int


def write_answer(task: tuple[str, str, str], draw: random.Random) -> Answer:
    """One answer to a task."""
    wrong = draw.choice([other[2] for other in TASKS if other[2] != task[2]])
    sentences, votes = [], 0
    for kinds in PARTS.values():
        points, _, texts = draw.choices(kinds, weights=[share for _, share, _ in kinds])[0]
        sentences.append(draw.choice(texts).format(language=task[1], **{RIGHT: task[2], WRONG: wrong}))
        votes += points
    return Answer(" ".join(sentence for sentence in sentences if sentence), votes)


def write_pair(qid: int, draw: random.Random) -> Pair:
    """One question and two answers at least two votes apart."""
    task = draw.choice(TASKS)
    question = draw.choice(ASKING).format(task=task[0], language=task[1]) + draw.choice(DETAILS)
    while True:
        better, worse = sorted((write_answer(task, draw) for _ in range(2)), key=lambda answer: -answer.votes)
        if better.votes - worse.votes >= 2:
            return Pair(qid, question, better.text, worse.text, better.votes, worse.votes)


def write_pairs(count: int, seed: int) -> list[Pair]:
    """`count` pairs, the same ones for the same seed."""
    draw = random.Random(seed)
    return [write_pair(qid, draw) for qid in range(count)]


if __name__ == "__main__":
    for pair in write_pairs(5, seed=0):
        print(f"{pair.question}\n  {pair.votes_j:+d} {pair.response_j}\n  {pair.votes_k:+d} {pair.response_k}")
