"""Record what two other releases compute of groups of answers, as data that `test_group.py` replays. For maintainers:

    python tests/parity/record_group.py                              # environments of their own, made and thrown away
    python tests/parity/record_group.py --trainer rloo               # one of the two
    python tests/parity/record_group.py --trainer grpo --python PATH   # in an environment that holds the pins already

Runs on Python 3.11. Recording takes under a minute for each, after the installation (about 1 GB each).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))  # it is started as a script
from tests.parity.record import ENVIRONMENT, make_environment

PINS = {
    "rloo": [
        "torch==2.13.0",
        "trl==0.15.2",
        "transformers==4.49.0",
        "accelerate==1.4.0",
        "datasets==3.3.2",
        "numpy==2.2.6",
        "rich==15.0.0",
    ],
    "grpo": [
        "torch==2.13.0",
        "trl==1.16.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==5.2.0",
        "numpy==2.4.6",
    ],
}


def main() -> None:
    """Find or make the environments of the releases and run the recorders in them."""
    parser = argparse.ArgumentParser(description="Record the group algorithms of other releases for the parity tests.")
    parser.add_argument("--trainer", choices=list(PINS), help="record this one only")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that holds its pinned releases")
    arguments = parser.parse_args()
    if arguments.python is not None and arguments.trainer is None:
        parser.error("--python is the environment of one release: name it with --trainer")
    for trainer in PINS if arguments.trainer is None else [arguments.trainer]:
        if arguments.python is not None:
            run_recorder(arguments.python, trainer)
            continue
        with tempfile.TemporaryDirectory(prefix=f"trl-{trainer}-") as folder:
            run_recorder(make_environment(Path(folder), PINS[trainer]), trainer)


def run_recorder(python: Path, trainer: str) -> None:
    """Run `record_rloo.py` or `record_grpo.py` with that interpreter; exits if it fails."""
    root = Path(__file__).resolve().parents[2]
    command = [str(python.absolute()), "-m", f"tests.parity.record_{trainer}", "tests/parity/data"]
    subprocess.run(command, cwd=root, env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)}, check=True)


if __name__ == "__main__":
    main()
