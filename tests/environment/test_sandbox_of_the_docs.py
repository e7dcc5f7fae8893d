"""The tool of docs/environments.md that runs Python: its limits hold."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.markdown_pages import DOCS, snippets


def has_landlock() -> bool:
    if sys.platform != "linux":  # there the number is another call's
        return False
    try:
        return bool(ctypes.CDLL(None).syscall(444, None, 0, 1) >= 1)
    except (OSError, TypeError, AttributeError):
        return False


@pytest.fixture(scope="module")
def run_locked_in() -> Callable[..., str]:
    """The function as it stands on the page."""
    (code,) = (
        code for _, code in snippets((DOCS / "environments.md").read_text("utf-8")) if "def run_locked_in" in code
    )
    names: dict = {}
    exec(code.partition("\nprint(run_python")[0], names)
    return names["run_locked_in"]


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")


@needs_landlock
def test_programs_run(run_locked_in: Callable[..., str]) -> None:
    run = partial(run_locked_in, seconds=HANG)
    assert run("print(sum(n * n for n in range(10)))") == "285\n"
    assert run("import math, json\nprint(json.dumps(math.factorial(10)))") == "3628800\n"
    assert run("x = 1") == "(no output)"
    assert "ZeroDivisionError" in run("1 / 0")
    assert "SyntaxError" in run("1 +")


@needs_landlock
@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("open('/etc/hostname').read()", "PermissionError|Too many open files"),
        ("open('{folder}/new', 'w')", "PermissionError|Too many open files"),
        ("import os; print(os.listdir('{folder}'))", "PermissionError|Too many open files"),
        ("import os; os.remove('{folder}/kept')", "PermissionError"),
        ("import os; os.rename('{folder}/kept', '{folder}/moved')", "PermissionError"),
        ("import os; os.mkdir('{folder}/new')", "PermissionError"),
        ("import os; os.truncate('{folder}/kept', 0)", "PermissionError"),
        ("import os; os.symlink('/', '{folder}/new')", "PermissionError"),
        ("import _socket; _socket.socket()", "Too many open files|ModuleNotFound"),
        ("import os; os.pipe()", "Too many open files"),
        ("import os; print(os.environ['PATH'])", "KeyError"),
        ("x = bytearray(10**10)", "MemoryError"),
        ("import ctypes; ctypes.CDLL(None).exit(7)", "no output"),
    ],
)
def test_what_is_not_allowed(code: str, error: str, run_locked_in: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    assert re.search(error, run_locked_in(code.replace("{folder}", str(tmp_path)), seconds=HANG))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("kept", "kept")]


@needs_landlock
@pytest.mark.skipif(os.geteuid() == 0, reason="root may have any number of processes")
def test_no_further_processes(run_locked_in: Callable[..., str]) -> None:
    assert "BlockingIOError" in run_locked_in("import os; os.fork()", seconds=HANG)


@needs_landlock
@pytest.mark.parametrize("code", ["while True: pass", f"import time; time.sleep({2 * HANG})"])
def test_time_is_limited(code: str, run_locked_in: Callable[..., str]) -> None:
    """Neither program ends by itself in the time that a test may take."""
    began = time.monotonic()
    assert run_locked_in(code, seconds=1) == "(no output)"
    assert time.monotonic() - began < HANG


@needs_landlock
def test_floods_of_output_are_cut(run_locked_in: Callable[..., str]) -> None:
    assert len(run_locked_in("while True: print('x' * 1000)", most_characters=500)) == 500
    began = time.monotonic()
    once_is_enough = "print('x' * 10000, flush=True)\nimport time; time.sleep(1000)"
    assert len(run_locked_in(once_is_enough, seconds=HANG, most_characters=500)) == 500
    assert time.monotonic() - began < HANG, "the program was stopped by the clock, not by its output"
