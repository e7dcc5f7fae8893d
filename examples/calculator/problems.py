"""Sums in words, episodes that solve them more or less well, and the calculator."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

QUESTIONS = {
    "+": ("What is {a} plus {b}?", "Add {b} to {a}.", "{a} birds and {b} more are?"),
    "-": ("What is {a} minus {b}?", "Take {b} from {a}.", "{a} birds without {b} are?"),
    "*": ("What is {a} times {b}?", "Multiply {a} by {b}.", "{a} trees of {b} birds are?"),
}
NUMBER = r"-?\d+(?:\.\d+)?"
HELD_OUT_SHARE = 10
"""One in this many pairs of numbers is never trained on."""


class Problem(NamedTuple):
    """`question` in words; `expression` to calculate; `answer` in digits."""

    question: str
    expression: str
    answer: str


def draw_problem(random_numbers: random.Random, held_out: bool = False) -> Problem:
    """A sum, a difference or a product of two numbers from 10 to 99; no pair is both held out and trained on."""
    while True:
        a, b = random_numbers.randint(10, 99), random_numbers.randint(10, 99)
        if ((a * 89 + b) % HELD_OUT_SHARE == 0) == held_out:
            break
    sign = random_numbers.choice("+-*")
    question = random_numbers.choice(QUESTIONS[sign]).format(a=a, b=b)
    expression = f"{a}{sign}{b}"
    return Problem(question, expression, calculate(expression))


def calculate(query: str) -> str:
    """The tool: two numbers with one of + - * / between them. The query is never run as code.

    Raises:
        ValueError: the query is something else.
    """
    found = re.fullmatch(rf"\s*({NUMBER})\s*([-+*/])\s*({NUMBER})\s*", query)
    if found is None:
        raise ValueError("write two numbers with + - * or / between them")
    a, b = float(found[1]), float(found[3])
    result = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else float("nan")}[found[2]]
    return f"{result:.10g}"


def write_episode(random_numbers: random.Random) -> str:
    """The solution of a problem by someone who has seen the calculator, but does not trust it yet.

    Half of the time the answer is given directly, a quarter of the time the calculator is called correctly, and a
    quarter of the time with a wrong digit or sign.
    """
    problem = draw_problem(random_numbers)
    kind = random_numbers.random()
    if kind < 0.5:
        return f"{problem.question}Result={problem.answer}<submit>"
    asked = problem.expression if kind < 0.75 else _slip(problem.expression, random_numbers)
    reply = calculate(asked)
    return f"{problem.question}<request><Calculator>{asked}<call>{reply}<response>Result={reply}<submit>"


def _slip(expression: str, random_numbers: random.Random) -> str:
    place = random_numbers.randrange(len(expression))
    others = "+-*" if expression[place] in "+-*" else "123456789"
    other = random_numbers.choice([character for character in others if character != expression[place]])
    return expression[:place] + other + expression[place + 1 :]


def is_right(text: str, answer: str) -> bool:
    """Whether the last number after `Result=` is the answer."""
    found = re.findall(rf"Result\s*=\s*({NUMBER})(?![\d.])", text)
    return bool(found) and float(found[-1]) == float(answer)
