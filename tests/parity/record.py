"""Record what release 0.7.11 computes, as data that `test_replay.py` replays. For maintainers:

    python tests/parity/record.py                           # its own virtual environment, made and thrown away
    python tests/parity/record.py --python PATH             # an environment that holds the pins already
    python tests/parity/record.py --python PATH --case gpt2 --case t5-left
    python tests/parity/record.py --python PATH --trainers    # the SFT, reward, DPO and iterative trainers only
    python tests/parity/record.py --python PATH --self-check  # replay the data on release 0.7.11, write nothing

Runs on Python 3.11 (the pins have no wheels for later ones). Recording everything takes about half a minute.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

PINS = [
    "torch==2.13.0",
    "trl==0.7.11",
    "transformers==4.37.2",
    "accelerate==0.27.2",
    "datasets==2.17.1",
    "peft==0.8.2",
    "numpy<2",
    "tyro==0.7.3",
    "pyarrow<15",
]

# One thread: a sum's order, and with it its rounding, does not depend on the machine's number of cores.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> None:
    """Find or make the environment of the reference release and run the recorder in it."""
    parser = argparse.ArgumentParser(description="Record release 0.7.11 for the parity tests.")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that holds the pinned releases")
    parser.add_argument("--case", action="append", default=[], help="record this case only (may be repeated)")
    parser.add_argument("--trainers", action="store_true", help="record the SFT, reward, DPO trainers only")
    parser.add_argument("--self-check", action="store_true", help="replay the data on release 0.7.11, write nothing")
    arguments = parser.parse_args()

    options = [f"--case={name}" for name in arguments.case] + ["--self-check"] * arguments.self_check
    options += ["--trainers"] * arguments.trainers
    if arguments.python is not None:
        _run(arguments.python, ["tests.parity.recorder", *options])
        return
    with tempfile.TemporaryDirectory(prefix="trl-0.7.11-") as folder:
        _run(make_environment(Path(folder), PINS), ["tests.parity.recorder", *options])


def make_environment(folder: Path, pins: list[str]) -> Path:
    """Install the pins into a new virtual environment; returns its interpreter."""
    if sys.version_info[:2] != (3, 11):
        raise SystemExit(
            f"the pins are for Python 3.11, this is {sys.version.split()[0]}: run the script with a Python 3.11, "
            "or give --python an environment that holds " + " ".join(pins)
        )
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *pins], check=True)
    return python


def record_releases(pins: Mapping[str, list[str]], commands: Mapping[str, list[str]]) -> None:
    """A command line that finds or makes the environment of each trainer's release and runs its recorder there.

    Args:
        pins: trainer -> packages of its environment
        commands: trainer -> module and arguments; the folder of the data is added
    """
    parser = argparse.ArgumentParser(description="Record trainers of other releases for the parity tests.")
    parser.add_argument("--trainer", choices=list(pins), help="record this one only")
    parser.add_argument("--python", type=Path, help="interpreter of an environment that holds its pinned releases")
    arguments = parser.parse_args()
    if arguments.python is not None and arguments.trainer is None:
        parser.error("--python is the environment of one release: name it with --trainer")
    for trainer in pins if arguments.trainer is None else [arguments.trainer]:
        if arguments.python is not None:
            _run(arguments.python, [*commands[trainer], "tests/parity/data"])
            continue
        with tempfile.TemporaryDirectory(prefix=f"trl-{trainer}-") as folder:
            _run(make_environment(Path(folder), pins[trainer]), [*commands[trainer], "tests/parity/data"])


def _run(python: Path, command: list[str]) -> None:
    """Run a module with that interpreter; exits with its status if it fails."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(root)}
    finished = subprocess.run([str(python.absolute()), "-m", *command], cwd=root, env=environment)
    if finished.returncode:
        raise SystemExit(finished.returncode)


if __name__ == "__main__":
    main()
