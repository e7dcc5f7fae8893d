"""What a section of gpu_check.py found, printed line by line, so that a section that is cut off still tells.

A record has a kind:

    check    an error and the tolerance that it must keep; a failed one makes the whole run fail
    goal     a measurement and what it is hoped to be
    figure   a measurement
    absent   what could not be looked at, and why
"""

from __future__ import annotations

import argparse
import json
import math
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MARK = "RECORD "


@dataclass(frozen=True)
class Record:
    """One line of the table.

    Attributes:
        value: None if there is none, because the check failed with an error or the thing is absent
        limit: the value must be at most this
        note: what the limit means, or the error
    """

    name: str
    kind: str
    value: float | None = None
    unit: str = ""
    limit: float | None = None
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None: there was nothing to pass."""
        if self.kind not in ("check", "goal"):
            return None
        # a number that is none fails
        return self.value is not None and self.limit is not None and self.value <= self.limit


class Section:
    """The arguments of a section's process, and where it reports.

    Attributes:
        device: "cuda" or "cpu"
        tiny: small sizes, to see in seconds that everything works
        wheels: folder with wheels of other libraries, or None
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--device", default="cuda")
        parser.add_argument("--tiny", action="store_true")
        parser.add_argument("--wheels", type=Path)
        arguments = parser.parse_args()
        self.device, self.tiny, self.wheels = arguments.device, arguments.tiny, arguments.wheels
        warnings.filterwarnings("ignore")

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def check(self, name: str, error: float, tolerance: float, note: str = "") -> None:
        """An error that must be at most `tolerance`."""
        self._report(Record(name, "check", float(error), "", tolerance, note))

    def goal(self, name: str, value: float, at_most: float, unit: str = "", note: str = "") -> None:
        """A measurement that is hoped to be at most this."""
        self._report(Record(name, "goal", float(value), unit, at_most, note))

    def figure(self, name: str, value: float, unit: str = "", note: str = "") -> None:
        """A measurement."""
        self._report(Record(name, "figure", float(value), unit, None, note))

    def absent(self, name: str, why: str) -> None:
        """What this run could not look at."""
        self._report(Record(name, "absent", note=why))

    @contextmanager
    def attempt(self, name: str, kind: str = "check") -> Iterator[None]:
        """An error inside is recorded as a failed `kind` of this name, and the section goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            lines = str(error).strip().splitlines() or [""]
            self._report(Record(name, kind, note=f"{type(error).__name__}: {lines[0][:300]}"))

    def _report(self, record: Record) -> None:
        numbers = asdict(record)
        if record.value is not None and not math.isfinite(record.value):  # JSON has no such numbers
            numbers |= {"value": None, "note": f"{record.value}; {record.note}"}
        print(f"\n{MARK}{json.dumps(numbers)}", flush=True)


def records_in(text: str) -> list[Record]:
    """The records that a section printed; a last line that is cut off is left out."""
    found = []
    for line in text.splitlines():
        if line.startswith(MARK):
            try:
                found.append(Record(**json.loads(line.removeprefix(MARK))))
            except (json.JSONDecodeError, TypeError):
                continue
    return found


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of `theirs`, over all tensors of the same names, in float64."""
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    size = sum(float(each.double().square().sum()) for each in theirs.values())
    return math.sqrt(apart / size) if size > 0 else math.sqrt(apart)
