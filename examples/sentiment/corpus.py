"""Film reviews with a verdict, drawn from the grammar in `reviews.grammar`.

python examples/sentiment/corpus.py     # prints ten reviews
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import NamedTuple

NEGATIVE, POSITIVE = 0, 1
GRAMMAR_FILE = Path(__file__).with_name("reviews.grammar")

Grammar = dict[str, list[str]]


class Review(NamedTuple):
    """A text and its verdict: `NEGATIVE` or `POSITIVE`."""

    text: str
    label: int


def read_grammar(file: Path = GRAMMAR_FILE) -> Grammar:
    """The rules of a grammar file: the name of each rule and its alternatives."""
    rules: Grammar = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            alternatives = rules[line.strip("[] ")] = []
        elif line.strip() and not line.startswith("#"):
            alternatives.extend(words.strip() for words in line.split("|"))
    return rules


def expand(grammar: Grammar, rule: str, draw: random.Random) -> str:
    """One draw from a rule, and from every rule that it names."""
    alternative = draw.choice(grammar[rule])
    return re.sub(r"\{(\w+)\}", lambda slot: expand(grammar, slot.group(1), draw), alternative)


def write_sentence(grammar: Grammar, rule: str, draw: random.Random) -> str:
    """One draw from a rule with the right articles and a capital at the start."""
    text = expand(grammar, rule, draw)
    text = re.sub(r"\b([Aa])\(n\)(?= [aeiou]| honest)", r"\1n", text).replace("(n)", "")
    return text[0].upper() + text[1:]


def write_review(grammar: Grammar, draw: random.Random, min_characters: int = 200) -> Review:
    """One review: perhaps a neutral opening, then opinions, then the verdict; at least `min_characters` long.

    Both verdicts are equally likely. One review in ten is mixed: praise and blame, and only the verdict decides.
    """
    label = draw.choice([NEGATIVE, POSITIVE])
    side = "pos" if label == POSITIVE else "neg"
    mixed = draw.random() < 0.1
    opinions = ["sentence_mixed", "sentence_pos", "sentence_neg"] if mixed else [f"sentence_{side}"]
    sentences = [write_sentence(grammar, "opener", draw)] if draw.random() < 0.7 else []
    verdict = write_sentence(grammar, f"verdict_{side}", draw)
    while not sentences or len(" ".join([*sentences, verdict])) < min_characters:
        sentences.append(write_sentence(grammar, draw.choice(opinions), draw))
    return Review(" ".join([*sentences, verdict]), label)


def write_corpus(number: int, seed: int) -> list[Review]:
    """`number` reviews, all different; the same ones for the same seed."""
    grammar, draw = read_grammar(), random.Random(seed)
    reviews: dict[str, Review] = {}
    while len(reviews) < number:
        review = write_review(grammar, draw)
        reviews[review.text] = review
    return list(reviews.values())


if __name__ == "__main__":
    for review in write_corpus(10, seed=0):
        print("+" if review.label == POSITIVE else "-", review.text)
