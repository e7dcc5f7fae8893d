"""The version of TRL that a running old script finds: that of its release, and not that of trl_step."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from trl_step.port.aliases import NEW, OLD
from trl_step.port.old.names import by_name
from trl_step.port.releases import Origin
from trl_step.port.replacing import replaced

LATEST = "0.11.4"
"""The last release with the step API, for scripts whose release is not known."""


@contextmanager
def version_of_trl(report: Callable[[str, str], None], origin: Origin) -> Iterator[None]:
    """Inside, `importlib.metadata.version("trl")` and `trl.__version__` are a release of TRL; each is reported once.

    Args:
        report: called with what was asked and what was answered.
        origin: of the script.
    """
    known = origin.releases or origin.train_releases
    answer = known[-1] if known else LATEST
    installed = importlib.metadata.version

    def version(distribution_name: str) -> str:
        if distribution_name != OLD:
            return installed(distribution_name)
        report(f"the version of {OLD}", answer)
        return answer

    class Versioned(ModuleType):
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

    package: Any = sys.modules[NEW]
    before = package.__class__
    with replaced(importlib.metadata, "version", version):
        package.__class__ = Versioned
        try:
            yield
        finally:
            package.__class__ = before
