"""Runs scripts of TRL 0.7 unchanged, checks them, or rewrites them for trl_step and today's packages.

`aliases.py` makes `import trl` give trl_step; `rules.py` is the table of old keywords; `patches.py` applies it to a
running script, `rewrite.py` to a script's text. The process is changed only while `run_script` runs.
"""

from typing import TYPE_CHECKING

from trl_step.lazy import lazy_names

HOMES = {
    "trl_step.port.rewrite": ("rewritten",),
    "trl_step.port.run": ("run_script",),
}

if TYPE_CHECKING:
    from trl_step.port.rewrite import rewritten
    from trl_step.port.run import run_script
else:
    __getattr__, __dir__ = lazy_names(__name__, HOMES)

__all__ = ["rewritten", "run_script"]
