"""The command line of the porting kit."""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trl_step.port.edits import read_source, write_source
from trl_step.port.names import missing_names
from trl_step.port.notebooks import Notebook, is_notebook
from trl_step.port.releases import RELEASES, TRAIN_RELEASES, origin_of
from trl_step.port.rewrite import rewritten, undecided
from trl_step.port.run import run_script

DESCRIPTION = """Run a script or notebook written for an old TRL unchanged: trl is trl_step, and arguments that today's
packages no longer accept are translated and reported. --check reports what would change in the text, --write changes
it."""


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0, or 1 if `--check` found something or if something is left to be done by hand."""
    parser = argparse.ArgumentParser(prog="trl_step port", description=DESCRIPTION)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="report line by line what would change, and change nothing")
    mode.add_argument("--write", action="store_true", help="make the changes in the file")
    parser.add_argument(
        "--release",
        help="of TRL that the script was written for, e.g. 0.7.4: PPOConfig had other defaults before 0.7.11; without "
        "it, pins of trl in the script or in the requirements beside it are read",
    )
    parser.add_argument(
        "script", help="the old script or notebook; with --check and --write also a folder, and more of them may follow"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    with reader_may_leave():
        options = parser.parse_args(arguments)
    if options.release not in (None, *RELEASES, *TRAIN_RELEASES):
        parser.error(
            f"--release {options.release}: the releases with the step API are {', '.join(RELEASES)}; those with PPO "
            f"with train() are {', '.join(TRAIN_RELEASES)}"
        )
    if not options.check and not options.write:
        if not Path(options.script).is_file():
            parser.error(f"there is no script {options.script}")
        run_script(options.script, options.arguments, options.release)
        return 0
    escape_what_cannot_be_written()
    paths = [Path(name) for name in (options.script, *options.arguments)]
    with reader_may_leave():
        ported = [(port_folder if path.is_dir() else port_file)(path, options.write, options.release) for path in paths]
    return max(ported)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Inside, a reader of the output that closes it, as `| head` does, ends the program without a traceback."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends
        raise SystemExit(1) from None


def escape_what_cannot_be_written() -> None:
    """From now on standard output shows a character that its encoding lacks, as cp1252 of Windows does, escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def port_folder(folder: Path, write: bool, release: str | None = None) -> int:
    """`port_file` for every script and notebook in and below a folder; one that cannot be read is named and passed by.

    Folders whose names begin with a dot are left out, and so are installed packages.
    """
    worst, count = 0, Counter[int | str | None]()
    for path in sorted((*folder.rglob("*.py"), *folder.rglob("*.ipynb"))):
        parts = path.relative_to(folder).parts
        if "site-packages" in parts or any(part.startswith(".") for part in parts):
            continue
        try:
            status: int | str | None = port_file(path, write, release)
        except SystemExit as error:
            print(error)
            status = "unreadable"
        count[status] += 1
        worst = max(worst, int(status != 0))
    done = "need nothing more" if write else "run as they are"
    print(f"{folder}: {count.total()} files, of which {count[0]} {done}, {count['unreadable']} cannot be read")
    return worst


def port_file(path: Path, write: bool, release: str | None = None) -> int:
    """Report the changes of one script, and make them with `write`; returns the exit status.

    `release` is that of TRL which the script was written for.

    Raises:
        SystemExit: it cannot be read, or is not valid in the running Python version.
    """
    try:
        data, encoding = read_source(path)
        text, notebook = data.decode(), None
        if is_notebook(path):
            notebook = Notebook(text)
            data, text = notebook.script.encode(), notebook.text
        origin = origin_of(path, text, release)
        new, edits = rewritten(data, origin)
    except SyntaxError as error:
        raise SystemExit(f"{path}:{error.lineno}: {error.msg}") from error
    except (OSError, ValueError, RecursionError) as error:  # not a file, wrong encoding, null bytes
        raise SystemExit(f"{path}: {error}") from error

    def place(line: int) -> str:
        return f"{path}:{line if notebook is None else notebook.place(line)}"

    for edit in edits:
        print(f"{place(edit.line)}: {edit.note}")
    missing = [(line, f"{what}: to be done by hand") for line, what in missing_names(data)]
    missing = sorted(missing + undecided(data, origin))
    told = [f"{place(line)}: {what}" for line, what in missing]
    if notebook is not None:
        told += [f"{path}:{at}: {what}: to be done by hand" for at, what in notebook.foreign]
        told += [f"{path}:{at}: not Python, left as it is: {what}" for at, what in notebook.broken]
    print("\n".join(told), end="\n" * bool(told))
    if write and edits:
        write_source(path, new if notebook is None else notebook.with_script(new.decode()).encode(), encoding)
    elif edits:
        old_lines, new_lines = (text.decode().splitlines() for text in (data, new))
        print("\n".join(difflib.unified_diff(old_lines, new_lines, str(path), f"{path} (ported)", lineterm="", n=0)))
    print(f"{path}: {summary(len(edits), len(told), write)}")
    return int(bool(told) or (bool(edits) and not write))


def summary(changes: int, by_hand: int, written: bool) -> str:
    """The last line about a file."""
    counted = []
    if changes:
        counted.append(f"{changes} change{'s' * (changes != 1)}{' written' * written}")
    if by_hand:
        counted.append(f"{by_hand} thing{'s' * (by_hand != 1)} by hand")
    return ", ".join(counted) or "runs as it is, nothing to change"
