"""Runs one client's program in a folder of its own, unchanged under the porting kit, then rewritten."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

RUNS = "runs"
REWRITTEN = "runs after `--write`"
MENDED = "runs once mended"
BY_HAND = "needs a hand"
NOT_TRIED = "not tried"


@dataclass
class Program:
    """A program of a client.

    Attributes:
        path: of the script, in the client's folder
        arguments: its own
        shown: those of them that the table names
        release: of TRL that it was written for
        settings: environment variables
        seconds: its time limit; None: that of the command line
        edits: (old, new) pieces of text that are changed first, such as sizes that are no arguments
        mends: likewise, a fault that the program has on its own release, too: changed if it stops unchanged
        files: texts beside it, by name
        untried: why it is not run, if it is not
    """

    path: str
    arguments: Sequence[str] = ()
    release: str = "0.7.11"
    settings: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    edits: Sequence[tuple[str, str]] = ()
    mends: Sequence[tuple[str, str]] = ()
    untried: str | None = None
    shown: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """A row of the table."""

    client: str
    version: str
    program: str
    result: str
    line: str = ""
    """what it stopped at, and where"""
    seconds: float = 0.0

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


class Runner:
    """Runs programs with one interpreter.

    Args:
        python: the interpreter
        folder: where it writes caches, and what is said outside of the programs
        package: see `stopped_at`
    """

    def __init__(self, python: str, folder: Path, package: Path | None = None) -> None:
        self._package = package
        folder.mkdir(parents=True, exist_ok=True)
        paths = (Path(__file__).parent / "surroundings", ROOT)
        surroundings = {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "WANDB_MODE": "disabled", "HF_DATASETS_CACHE": str(folder / "datasets"), "TOKENIZERS_PARALLELISM": "false",
            "MPLBACKEND": "agg", "CUDA_VISIBLE_DEVICES": "",
        }  # fmt: skip
        self._log = (folder / "runner.txt").open("ab")
        self._process = subprocess.Popen(
            [python, str(Path(__file__).parent / "preloaded.py")], env=surroundings, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip

    def close(self) -> None:
        self._process.communicate()
        self._log.close()

    def run(self, program: Program, text: Path, assets: Path, folder: Path, limit: float) -> tuple[str, str]:
        """The result of a program, and the line it stopped at.

        Args:
            text: the program
            assets: folder of models and data
            folder: where it works; is made
            limit: seconds for each run
        """
        shutil.copytree(assets, folder, dirs_exist_ok=True)
        script = folder / text.name
        shutil.copy(text, script)
        for name, content in program.files.items():
            (folder / name).write_text(content, encoding="utf-8")
        if missing := edited(script, program.edits):
            return NOT_TRIED, missing
        limit = program.seconds or limit
        port = ["trl_step.port", "--release", program.release]
        unchanged = self._start([*port, script.name, *program.arguments], folder, program.settings, limit)
        if unchanged is None:
            return RUNS, ""
        if program.mends:
            if missing := edited(script, program.mends):
                return BY_HAND, f"{unchanged}; {missing}"
            mended = self._start([*port, script.name, *program.arguments], folder, program.settings, limit)
            return (BY_HAND, f"{unchanged}; mended: {mended}") if mended else (MENDED, unchanged)
        if script.suffix == ".ipynb" or self._package is not None:  # no package is rewritten
            return BY_HAND, unchanged
        self._start([*port, "--write", script.name], folder, {}, limit)
        rewritten = self._start([script.name, *program.arguments], folder, program.settings, limit)
        return (REWRITTEN if rewritten is None else BY_HAND), unchanged

    def _start(self, command: Sequence[str], folder: Path, settings: Mapping[str, str], limit: float) -> str | None:
        """None if the program came to its end; else what it stopped at."""
        with (folder / "output.txt").open("a", encoding="utf-8") as output:
            output.write(f"\n$ {' '.join(command)}\n")
        order = {"arguments": list(command), "folder": str(folder), "settings": dict(settings), "limit": limit}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            return f"the interpreter ended; see {self._log.name}"
        status = json.loads(answer)
        if status == 0:
            return None
        if status is None:
            return f"no end within {limit:g} seconds"
        said = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2]
        script = next(word for word in command if word.endswith((".py", ".ipynb")))
        return stopped_at(said, script, self._package) or f"exit status {status}"


def edited(script: Path, edits: Sequence[tuple[str, str]]) -> str:
    """Changes pieces of a program's text; what is missing in it, if something is."""
    text = script.read_text(encoding="utf-8")
    for old, new in edits:
        if old not in text:
            return f"the text to be changed is not there: {old!r}"
        text = text.replace(old, new)
    script.write_text(text, encoding="utf-8")
    return ""


def stopped_at(said: str, script: str, package: Path | None = None) -> str:
    """The last error in a program's output, and the line that it came from.

    Args:
        said: the output
        script: name of the program; the cells of a notebook run as one script
        package: folder that the client is installed in, if its own lines are of interest, and not the program's
    """
    lines = said.splitlines()
    errors = [i for i, line in enumerate(lines) if re.match(r"[\w.]*(Error|Exit|Exception|Interrupt|Enabled)\b", line)]
    if not errors:
        usage = [line for line in lines if "error: " in line]
        return usage[-1].strip()[:300] if usage else ""
    message = " ".join(part.strip() for part in lines[errors[-1] :][:1] if part.strip())
    message = re.sub(r" \(/[^)]*\)", "", message)  # where a package is installed here
    place = ""
    for path, line in re.findall(r'File "([^"]+)", line (\d+)', "\n".join(lines[: errors[-1]])):
        if package is not None and package in Path(path).parents:
            place = f"{Path(path).relative_to(package)}, line {line}: "
        elif package is None and Path(path).name in (script, f"{script}.py"):
            place = f"line {line}: "
    return f"{place}{message}"[:300]


# --- environments ------------------------------------------------------------------------------------------------


def make_environment(folder: Path, requirements: Sequence[str], limit: float) -> tuple[str, str | None]:
    """An environment of its own for a client, which sees the packages of this one behind its own.

    Returns:
        the interpreter, and what pip said if it failed
    """
    python = str(folder / "bin" / "python")
    if folder.exists():
        return python, None
    venv.create(folder)
    behind = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages(folder) / "behind.pth").write_text("\n".join(behind), encoding="utf-8")
    for arguments in requirements:
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", *arguments.split()]
        try:
            done = subprocess.run(pip, capture_output=True, text=True, timeout=limit, cwd=ROOT)
        except subprocess.TimeoutExpired:
            return python, f"pip install {arguments}: no end within {limit:g} seconds"
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            return python, f"pip install {arguments}: {(said or ['failed'])[0]}"[:300]
    return python, None


def site_packages(environment: Path) -> Path:
    """Where an environment has its packages."""
    return next((environment / "lib").glob("python*")) / "site-packages"


def elapsed(start: float) -> float:
    return round(time.monotonic() - start, 1)
