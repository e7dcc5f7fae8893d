"""The version of TRL that a running old script finds: that of its release, and not that of trl_step."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trl_step.port.aliases import NEW, OLD
from trl_step.port.old.names import by_name
from trl_step.port.releases import Origin

LATEST = "0.11.4"
"""The last release with the step API, for scripts whose release is not known."""


@contextmanager
def version_of_trl(report: Callable[[str, str], None], origin: Origin) -> Iterator[None]:
    """Inside, what `importlib.metadata` knows of trl and `trl.__version__` are a release of TRL; each is reported once.

    Args:
        report: called with what was asked and what was answered.
        origin: of the script.
    """
    known = origin.releases or origin.train_releases
    answer = known[-1] if known else LATEST
    finder = ReleaseFinder(report, answer)
    package: Any = sys.modules[NEW]
    before: Any = package.__class__

    class Versioned(before):  # type: ignore[misc]
        """`trl_step`, whose version depends on who asks."""

        @property
        def __version__(self) -> str:
            asker = sys._getframe(1).f_globals.get("__name__", "")
            if asker.partition(".")[0] == NEW:
                return str(vars(self)["__version__"])
            report(f"{OLD}.__version__", answer)
            return answer

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            return by_name(self)

    package.__class__ = Versioned
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        package.__class__ = before


class ReleaseFinder(importlib.metadata.DistributionFinder):
    """Finds the release where `importlib.metadata` looks for what is installed."""

    def __init__(self, report: Callable[[str, str], None], answer: str) -> None:
        self.report, self.answer = report, answer

    def find_distributions(self, context: Any = None) -> Iterator[importlib.metadata.Distribution]:
        name = getattr(context, "name", None)
        if name is not None and name.lower() == OLD:
            self.report(f"the version of {OLD}", self.answer)
            yield Release(self.answer)

    def find_spec(self, *args: Any) -> None:
        """It finds no modules."""


class Release(importlib.metadata.Distribution):
    """What is installed, as far as a script asks: name and version."""

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: {OLD}\nVersion: {self.answer}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Path:
        return Path(__file__).resolve().parents[2] / path
