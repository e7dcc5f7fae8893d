"""`python -m trl_step.port [--check | --write] script.py [the script's own arguments]`."""

from __future__ import annotations

import sys

from trl_step.port.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
