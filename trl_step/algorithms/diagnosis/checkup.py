"""All rules on one step of a run after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from trl_step.algorithms.diagnosis import of_responses, of_training
from trl_step.algorithms.diagnosis.findings import PATIENCE, UNKNOWN, Circumstances, Diagnosis
from trl_step.algorithms.diagnosis.signs import Signs

MEMORY = max(PATIENCE, of_training.CRITIC_PATIENCE, of_training.SCORE_PATIENCE, of_responses.END_PATIENCE)
"""Steps that `diagnose` looks back."""


class Finding(NamedTuple):
    """A diagnosis, and the step in which it was made first."""

    step: int
    """counted from 1"""
    diagnosis: Diagnosis

    def __str__(self) -> str:
        return f"step {self.step}: {self.diagnosis}"


class Checkup:
    """Looks at one step of a run after the other, and remembers what the next look needs.

    Attributes:
        findings: one for each diagnosis that was made, in order.
        steps: how many were looked at.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.steps = 0
        self._first: Signs | None = None
        self._recent: deque[Signs] = deque(maxlen=MEMORY)
        self._batch = ""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from: numbers and texts."""
        return {
            "findings": [(step, tuple(diagnosis)) for step, diagnosis in self.findings],
            "steps": self.steps,
            "first": None if self._first is None else tuple(self._first),
            "recent": [tuple(signs) for signs in self._recent],
            **({"batch": self._batch} if self._batch else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.findings = [Finding(step, Diagnosis(*diagnosis)) for step, diagnosis in state["findings"]]
        self.steps = state["steps"]
        self._first = None if state["first"] is None else Signs(*state["first"])
        self._recent = deque((Signs(*signs) for signs in state["recent"]), maxlen=MEMORY)
        self._batch = state.get("batch", "")  # older states do not have it

    def look(self, stats: Mapping[str, Any], circumstances: Circumstances = UNKNOWN) -> list[Diagnosis]:
        """What is wrong in the next step of the run and was not reported for an earlier one."""
        signs = Signs.of(stats)
        self._first = self._first or signs
        self._recent.append(signs)
        self.steps += 1
        seen = circumstances._replace(again="" != circumstances.batch == self._batch)
        self._batch = circumstances.batch
        known = {finding.diagnosis.name for finding in self.findings}
        new = [d for d in diagnose(self._first, tuple(self._recent), seen) if d.name not in known]
        self.findings += [Finding(self.steps, diagnosis) for diagnosis in new]
        return new


def diagnose(first: Signs, recent: Sequence[Signs], circumstances: Circumstances = UNKNOWN) -> list[Diagnosis]:
    """What is wrong in the last step of `recent`.

    Args:
        first: of the run's first step
        recent: of the last steps, oldest first, up to `MEMORY` of them; at least one
        circumstances: of the last step
    """
    return [
        *of_training.lost(recent[-1]),
        *of_training.idle(recent),
        *of_responses.inputs(circumstances),
        *of_responses.negative_kl(first, recent, circumstances),
        *of_responses.another_distribution(recent, circumstances),
        *of_responses.sampler_mismatch(recent[-1]),
        *of_training.far_from_reference(recent),
        *of_training.policy(first, recent, circumstances),
        *of_training.scores(first, recent),
        *of_training.reach_of_scores(recent[-1], circumstances),
        *of_training.values(recent),
        *of_responses.ends(recent, circumstances),
        *of_responses.padding(circumstances),
    ]
