"""`python -m trl_step` is the console command `trl_step`."""

from __future__ import annotations

import sys

from trl_step.commands import main

if __name__ == "__main__":
    sys.exit(main())
