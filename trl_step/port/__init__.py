"""Scripts of TRL 0.7: run as they stand, checked, or rewritten for trl_step and today's packages.

`aliases.py` makes `import trl` give trl_step; `rules.py` is the table of old keywords; `patches.py` applies it to a
running script, `rewrite.py` to a script's text. Nothing here changes the process before `run_script` begins, nor after
it ends.
"""

from trl_step.port.rewrite import rewritten
from trl_step.port.run import run_script

__all__ = ["rewritten", "run_script"]
