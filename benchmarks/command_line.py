"""The common options of the timings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from peers import PEERS
from report import RESULTS

QUICK = {"peers": ["trl_step"], "rounds": 1, "runs": 1, "steps": 1, "retries": 0}
HELP = {
    "rounds": "fresh processes of each contender, alternating",
    "runs": "runs in each process",
    "steps": "timed calls in each process",
    "retries": "how often a run is repeated if the machine was not steady",
    "threads": "of each process",
}


def options(text: str, peers: Sequence[str] | None = None, **counts: int) -> argparse.ArgumentParser:
    """A parser with `--quick`, `--output`, and a number for each of `counts`, which gives its default.

    Args:
        text: its first line says what the script does
        peers: the libraries that are timed by default, without `--peers`; None: trl_step is the only one
    """
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, trl_step alone, to see that it works")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the results")
    for name, default in (counts | {"threads": 2}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=HELP[name])
    if peers is not None:
        parser.add_argument("--peers", nargs="*", default=list(peers), choices=list(PEERS), help="what is timed")
        parser.add_argument(
            "--python", nargs=2, action="append", default=[], metavar=("PEER", "PATH"),
            help="a library's own interpreter, in place of an environment that is made for it",
        )  # fmt: skip
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; with `--quick` everything runs once."""
    arguments = parser.parse_args()
    if arguments.quick:
        vars(arguments).update({name: value for name, value in QUICK.items() if name in arguments})
    return arguments
