"""`trl_step demo`: the sentiment example, from a clone or an installed package; what it builds, for notebooks."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from trl_step.port.run import command_line

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPT = Path("examples", "sentiment", "ppo_sentiment.py")
NEEDED = ("rich", "matplotlib", "tensorboard")
"""Packages of the extra `demo`."""
MODULES = ("assets", "building", "corpus")
"""The files beside the script that build what it needs."""


class DemoAssets(NamedTuple):
    """Folders that are loaded as a name from the hub is: `load_dataset`, `from_pretrained`, `pipeline`."""

    reviews: Path
    model: Path
    classifier: Path


def find_script() -> Path:
    """The example's script. A package that was installed from a wheel contains a copy of it (see setup.py).

    Raises:
        SystemExit: packages of the extra `demo` are missing.
        FileNotFoundError: the package was copied here without its examples.
    """
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise SystemExit(f"trl_step demo needs {', '.join(missing)}: pip install {' '.join(missing)}")
    packaged, cloned = PACKAGE / SCRIPT, PACKAGE.parent / SCRIPT
    for script in (packaged, cloned):
        if script.is_file():
            return script
    raise FileNotFoundError(f"the example is neither {packaged} nor {cloned}: install trl_step with pip")


def run_demo(arguments: Sequence[str]) -> int:
    """Run the example like `python examples/sentiment/ppo_sentiment.py arguments...`.

    An installed package keeps what the example builds in the user's cache; a clone uses its own.

    Raises:
        FileNotFoundError: the package was copied here without its examples.
    """
    script = str(find_script())
    with command_line(script, list(arguments)):
        runpy.run_path(script, run_name="__main__")
    return 0


def demo_assets(cache_dir: Path | str | None = None, **settings: Any) -> DemoAssets:
    """The example's film reviews, small language model and classifier, built in the first call: a minute on two cores.

    Args:
        cache_dir: where they are kept; by default where `trl_step demo` keeps them.
        settings: sizes, the fields of `AssetSettings` in the example's `assets.py`; others are built beside these.

    Raises:
        FileNotFoundError: the package was copied here without its examples.
    """
    kept = {name: sys.modules.pop(name) for name in MODULES if name in sys.modules}  # the caller's, of the same names
    try:
        with command_line(str(find_script()), []):
            assets = importlib.import_module("assets")
            places = [] if cache_dir is None else [Path(cache_dir)]
            built = assets.build_assets(assets.AssetSettings(**settings), *places)
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.modules.update(kept)
    return DemoAssets(built.reviews, built.model, built.classifier)
