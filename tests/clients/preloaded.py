"""Runs programs one after the other, each in a fork of a process that has imported the large packages.

Reads an order in JSON from each line of its input, and answers with an exit status, or null after the time limit.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from typing import Any

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "transformers.trainer", "transformers.pipelines")


def child(order: dict[str, Any]) -> int:
    """Become the program; its exit status."""
    os.setsid()
    os.chdir(order["folder"])
    os.environ.update(order["settings"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = list(order["arguments"])
    try:
        if sys.argv[0] == "trl_step.port":
            runpy.run_module("trl_step.port", run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, order["folder"])
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def status_of(pid: int, limit: float) -> int | None:
    """The exit status of a child; None if it had to be ended."""
    give_up = time.monotonic() + limit
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print is no answer
    for name in PACKAGES:
        importlib.import_module(name)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = child(order)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        print(json.dumps(status_of(pid, order["limit"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
