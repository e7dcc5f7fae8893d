"""What a diagnosis is made from beside the numbers of the steps, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

PATIENCE = 10
"""Steps in a row before a sign that may go away by itself is reported."""
OFTEN = 3
"""Steps, among the last `WINDOW`, before a sign that comes and goes is reported."""
WINDOW = 5
ORDER = (
    "not finite", "learning rate", "query in response", "same responses", "padding", "greedy sampling",
    "sampling settings", "old weights", "sampler mismatch", "first ratio", "negative KL", "another distribution",
    "constant scores", "skipped", "large steps", "clipping", "runaway KL", "entropy collapse", "falling score",
    "value head", "score reach", "no end token",
)  # fmt: skip
"""The diagnoses, in the order of what to mend first: what makes the numbers wrong, then what moves the policy too far,
then what follows from it."""


class Circumstances(NamedTuple):
    """What is known of a step's sampling beside its statistics. The defaults say: nothing."""

    known: bool = False
    """the rest was seen; False for saved statistics"""
    sampled_by_trainer: bool = False
    """`PPOTrainer.generate` drew the responses"""
    sampling_settings: tuple[str, ...] = ()
    """settings of that call under which tokens come from another distribution than the policy's, such as "top_k=50" """
    dropout: float = 0.0
    """highest dropout rate of a module in train mode when `step` was called"""
    pads_right: bool = False
    """prompts of different lengths, a decoder-only model, and a tokenizer that pads on the right"""
    given_logprobs: bool = False
    """`old_logprobs` were handed to `step`"""
    given_masks: bool = False
    """`response_masks` were handed to `step`: the responses are episodes, and their environment says what ends them"""
    end_tokens: tuple[int, ...] = ()
    """ids that end a response"""
    likeliest: tuple[str, ...] = ()
    """settings of `generate` by which the answers are the likeliest ones and no samples, such as "do_sample=False" """
    repeats_query: bool = False
    """nearly every response begins with its query"""
    padded: tuple[str, ...] = ()
    """what seems to be padded in the lists given to `step`: "queries begin", "queries end", "responses end" """
    batch: str = ""
    """what tells the queries and responses of this step from others; "": not known"""
    again: bool = False
    """`step` was given them in the step before, too"""
    updates_behind: int = 0
    """updates that the weights which drew the responses lacked when they drew"""

    lam: float | None = None
    """lambda of the advantages, if the score of a sample reaches its tokens through it alone: there are values, and one
    number per sample"""


UNKNOWN = Circumstances()


class Diagnosis(NamedTuple):
    """One thing that is wrong."""

    name: str
    """one of `ORDER`"""
    finding: str
    """what was seen, with its numbers"""
    advice: str
    """the likely cause, and the setting to change"""

    def __str__(self) -> str:
        return f"{self.finding}: {self.advice}"


def for_long(flags: Sequence[bool], steps: int) -> bool:
    """Whether the last `steps` flags are all true."""
    return len(flags) >= steps and all(flags[-steps:])


def often(flags: Sequence[bool]) -> bool:
    """Whether `OFTEN` of the last `WINDOW` flags are true."""
    return sum(flags[-WINDOW:]) >= OFTEN
