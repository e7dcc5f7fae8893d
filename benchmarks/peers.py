"""The libraries that are compared, each in its own virtual environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, NamedTuple

from cases import Case

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("TRL_STEP_BENCH_CACHE", HERE.parent / ".cache" / "benchmarks"))
CONSTRAINTS = HERE.parent / "constraints.txt"


class Peer(NamedTuple):
    """A library and what it can run.

    Args:
        library: the module that is imported
        packages: what pip installs; empty: the running Python is used
        constrained: with the versions of constraints.txt
        algorithms: of the cases that it can run
        adapters_only: it trains no other weights
        settings: of its configuration
        groups_only: it is compared where several samples have one query
    """

    name: str
    library: str
    packages: tuple[str, ...] = ()
    constrained: bool = False
    algorithms: tuple[str, ...] = ("gae",)
    adapters_only: bool = False
    settings: tuple[tuple[str, Any], ...] = ()
    groups_only: bool = False

    def runs(self, case: Case) -> bool:
        """Whether it has the case's algorithm, and the case shows something about it."""
        fits = (case.lora or not self.adapters_only) and (case.group > 1 or not self.groups_only)
        return case.algorithm in self.algorithms and fits


OURS = Peer("trl_step", "trl_step", algorithms=("gae", "grpo", "gspo", "own-loss"))
APART = OURS._replace(name="trl_step apart", settings=(("share_prompts", False),), groups_only=True)
"""Every sample with its own copy of the query."""
PEERS = {
    "trl_step": OURS,
    "trl_step apart": APART,
    "trl 0.7.11": Peer(
        "trl 0.7.11",
        "trl",
        (
            "torch==2.13.0", "trl==0.7.11", "transformers==4.37.2", "accelerate==0.27.2", "datasets==2.17.1",
            "peft==0.8.2", "numpy<2", "tyro==0.7.3", "pyarrow<15",
        ),
    ),
    "trl 0.11.4": Peer(
        "trl 0.11.4", "trl", ("trl==0.11.4", "torch", "transformers", "accelerate", "datasets", "peft", "rich"), True
    ),
    "trl 1.16.0": Peer(
        "trl 1.16.0", "trl", ("trl==1.16.0", "torch", "transformers", "accelerate", "datasets", "peft"), True,
        algorithms=("grpo", "gspo"),
    ),
    "agilerl 2.58.0": Peer(
        "agilerl 2.58.0", "agilerl", ("torch==2.13.0", "agilerl[cpu-llm]==2.58.0"),
        algorithms=("grpo", "gspo"), adapters_only=True,
    ),
}  # fmt: skip


def python_of(peer: Peer, given: dict[str, str]) -> str:
    """The Python that runs a peer: a given one, the running one, or that of an environment that is built once."""
    if peer.name in given:
        return given[peer.name]
    if not peer.packages:
        return sys.executable
    folder = CACHE / peer.name.replace(" ", "-")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print(f"making the environment of {peer.name} in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        constraints = ["-c", str(CONSTRAINTS)] if peer.constrained else []
        # torch first: another package would pull a build of several gigabytes
        for packages in (("torch==2.13.0",), peer.packages):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages, *constraints], check=True)
        (folder / "ready").touch()
    return str(python)


def run(python: str, script: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run `script` in a fresh process and read the line that it prints.

    Raises:
        RuntimeError: the process printed no result; the message has the end of its output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(job.get("threads", 2))}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # on a shared machine spinning threads would time each other
    environment["PYTHONPATH"] = str(HERE.parent) if job["library"] == "trl_step" else ""
    done = subprocess.run(
        [python, str(HERE / script), json.dumps(job)], capture_output=True, text=True, env=environment, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise RuntimeError(f"{job['library']} printed no result:\n{done.stdout[-500:]}\n{done.stderr[-3000:]}")
