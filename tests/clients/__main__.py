"""Runs clients of the old releases with small local models and prints a table.

```bash
python -m tests.clients                            # what the package registry has
python -m tests.clients --clones FOLDER            # and TRL's examples, from clones of repositories
python -m tests.clients --only 0.7.11 llamafactory # some of them
```

FOLDER holds `trl/v0.7.11`, `alignment-handbook/v0.2.0` and so on: the files of these tags (`git worktree add`). Each
client from the registry gets an environment of its own in a temporary folder, and each program a folder of its own with
small models and data sets of the names that it loads. A program runs unchanged under the porting kit; if it does not
come to its end, it is rewritten (`--write`) and run plainly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from tests.clients import examples, packages
from tests.clients.running import (
    BY_HAND,
    MENDED,
    NOT_TRIED,
    REWRITTEN,
    ROOT,
    RUNS,
    Program,
    Result,
    Runner,
    elapsed,
    make_environment,
    site_packages,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="words of which one is in a client, release or program")
    parser.add_argument("--clones", type=Path, help="folder of clones; without it their programs are not tried")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one run of a program")
    parser.add_argument("--install-limit", type=float, default=900.0, help="seconds for one installation")
    parser.add_argument("--json", type=Path, default=Path("runs/clients.json"), help="file that results are written to")
    parser.add_argument("--keep", type=Path, help="folder to work in, which is kept; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.keep or Path(temporary)).resolve()
        models = work / "assets"
        if not models.exists():
            models.mkdir(parents=True)
            subprocess.run(
                [sys.executable, "-c", WRITE], cwd=models, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
            )
        results: list[Result] = []
        for client in [*packages.CLIENTS, *examples.CLIENTS]:
            programs = [
                program
                for program in client.programs
                if not options.only
                or any(word in f"{client.name} {client.version} {program.path}" for word in options.only)
            ]
            if not programs:
                continue
            python, problem, package = sys.executable, None, None
            folder = work / f"{client.name}-{client.version}"
            if client.requirements:
                environment = work / "environments" / client.environment
                python, problem = make_environment(environment, client.requirements, options.install_limit)
                package = site_packages(environment) if client.clone is None else None
            runner = Runner(python, folder / "runner", package)
            for number, program in enumerate(programs):
                results.append(tried(client, program, problem, folder / str(number), models, runner, options))
                print(row(results[-1]), flush=True)
                save(options.json, results)
            runner.close()
    print("\n" + table(results))
    return 0


WRITE = "from tests.clients.assets import write_assets; write_assets()"


def tried(
    client: packages.Client,
    program: Program,
    problem: str | None,
    folder: Path,
    models: Path,
    runner: Runner,
    options: argparse.Namespace,
) -> Result:
    """A row of the table."""
    start = time.monotonic()
    text: Path | None = client.text(program, options.clones)
    if program.untried or problem:
        result, line = NOT_TRIED, program.untried or problem or ""
    elif text is None or not text.is_file():
        result, line = NOT_TRIED, "no clone of the repository" if options.clones is None else f"no file {program.path}"
    else:
        result, line = runner.run(program, text, models, folder, options.limit)
    shown = " ".join([program.path, *program.shown])
    return Result(client.name, client.version, shown, result, line, elapsed(start))


def save(path: Path, results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [result.asdict() for result in results]
    path.write_text(json.dumps({"date": date.today().isoformat(), "results": rows}, indent=1), encoding="utf-8")


def row(result: Result) -> str:
    line = result.line.replace("|", "\\|").replace("\n", " ")
    return f"| {result.client} {result.version} | {result.program} | {result.result} | {line} |"


def table(results: list[Result]) -> str:
    counts = ", ".join(
        f"{sum(result.result == kind for result in results)} {kind}"
        for kind in (RUNS, REWRITTEN, MENDED, BY_HAND, NOT_TRIED)
    )
    return "\n".join(["| client | program | result | line |", "|---|---|---|---|", *map(row, results), "", counts])


if __name__ == "__main__":
    sys.exit(main())
