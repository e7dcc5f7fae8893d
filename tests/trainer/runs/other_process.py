"""What tests need a process of its own for: `python other_process.py FOLDER` plays `resumed_runs` and `killed_saves`.

One process for both, as its imports take longer than either.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.trainer.runs import killed_saves, resumed_runs
from tests.trainer.runs.forks import fork, wait

SCRIPT = __file__
RESUMED, KILLED = "resumed", "killed"


def main(folder: Path) -> None:
    (folder / KILLED).mkdir()
    killed = fork(lambda: killed_saves.main(folder / KILLED))
    resumed_runs.main(folder / RESUMED)
    wait(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
