"""`trl_step demo`: the sentiment example, from a clone or from an installed package."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path

from trl_step.port.run import command_line

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = Path("examples", "sentiment", "ppo_sentiment.py")


def run_demo(arguments: Sequence[str]) -> int:
    """Run the example like `python examples/sentiment/ppo_sentiment.py arguments...`.

    A package that was installed from a wheel contains a copy of it (see setup.py), and keeps what it builds in the
    user's cache; a clone uses its own.

    Raises:
        FileNotFoundError: the package was copied here without its examples.
    """
    packaged, cloned = PACKAGE / SCRIPT, PACKAGE.parent / SCRIPT
    if packaged.is_file():
        script = packaged
    elif cloned.is_file():
        script = cloned
    else:
        raise FileNotFoundError(f"the example is neither {packaged} nor {cloned}: install trl_step with pip")
    with command_line(str(script), list(arguments)):
        runpy.run_path(str(script), run_name="__main__")
    return 0
