"""A doctor for runs: what is wrong, the likely cause, and the setting to change.

```python
from trl_step.extras import doctor

print(doctor.report(trainer))
print(doctor.report([json.loads(line) for line in open("stats.jsonl")]))  # a saved run
```

A trainer warns about the same problems while it runs, once each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Union

from trl_step.algorithms.diagnosis.checkup import Checkup, Finding
from trl_step.algorithms.diagnosis.findings import ORDER, Diagnosis

__all__ = ["Diagnosis", "Finding", "diagnose", "report"]


class Examined(Protocol):
    """A trainer that monitors its steps, such as `PPOTrainer`."""

    @property
    def checkup(self) -> Checkup: ...


JUDGED_BY = {
    "the KL divergence": "objective/kl",
    "the first ratio": "ppo/policy/ratio_error",
    "entropy": "ppo/policy/entropy",
    "clipping": "ppo/policy/clipfrac",
    "the size of steps": "ppo/policy/approxkl",
    "scores": "ppo/mean_scores",
    "values": "ppo/val/var_explained",
    "ends of responses": "tokens/responses_ended",
}
"""The statistic without which the doctor says nothing about something."""
Run = Union[Examined, Mapping[str, Any], Sequence[Mapping[str, Any]]]
"""A trainer; what its `step` returned; or a sequence of such results, oldest first. The scalars are enough."""


def diagnose(run: Run) -> list[Finding]:
    """What is wrong with `run`: each diagnosis once, with the step that first showed it, in the order of what to mend
    first.

    A trainer knows more than its statistics show, such as how it sampled, so it names causes that a saved run leaves
    open. Keys that a saved run (of another release) lacks are ignored.

    Raises:
        TypeError: `run` is neither a trainer nor statistics.
    """
    if isinstance(run, Mapping):
        run = [run]
    if not isinstance(run, Sequence):
        return _in_order(run.checkup.findings)
    checkup = Checkup()
    for stats in run:
        if not isinstance(stats, Mapping):
            raise TypeError(f"a run is a sequence of statistics, each a dictionary, not {type(stats).__name__}")
        checkup.look(stats)
    return _in_order(checkup.findings)


def _in_order(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: ORDER.index(finding.diagnosis.name))


def report(run: Run) -> str:
    """The findings of `diagnose` as text, one line each; and what saved statistics say nothing about."""
    return worded(diagnose(run), not_judged(run))


def worded(findings: Sequence[Finding], missing: Sequence[str]) -> str:
    """What `report` says, from what `diagnose` and `not_judged` gave."""
    if len(missing) == len(JUDGED_BY) and not findings:
        return "no step has a statistic that the doctor reads, such as objective/kl: it cannot judge this run"
    lines = [str(finding) for finding in findings] or ["nothing is wrong as far as the statistics show"]
    if missing:
        lines.append(f"not judged, as their statistics are missing: {', '.join(missing)}")
    return "\n".join(lines)


def not_judged(run: Run) -> list[str]:
    """The names in `JUDGED_BY` of what the statistics say nothing about: all of them before the first step."""
    if isinstance(run, Mapping):
        run = [run]
    if not isinstance(run, Sequence):
        return [] if run.checkup.steps else list(JUDGED_BY)
    return [name for name, key in JUDGED_BY.items() if not any(key in step for step in run)]
