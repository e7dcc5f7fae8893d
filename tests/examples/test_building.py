"""What a build leaves behind, and how an interrupted script ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.examples.scripts import EXAMPLES, SHORT_RUNS
from tests.limits import HANG


@pytest.fixture
def building(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import sentiment.building

    return sentiment.building


def test_what_a_killed_build_left_is_removed_by_the_next(building: ModuleType, tmp_path: Path) -> None:
    code = f"""
import os, sys
sys.path.insert(0, {str(EXAMPLES)!r})
from pathlib import Path
from sentiment.building import build_folder
build_folder(Path({str(tmp_path / "made")!r}), lambda folder: ((folder / "half").touch(), os.kill(os.getpid(), 9)))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG).returncode == -9
    (left,) = tmp_path.iterdir()
    assert (left / "half").is_file()
    building.build_folder(tmp_path / "made", lambda folder: (folder / "whole").touch())
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "whole").is_file()


def test_builds_that_may_run_still_are_left_alone(building: ModuleType, tmp_path: Path) -> None:
    here = building._machine()
    running = tmp_path / f"building-{here}-{os.getppid()}-abc"
    elsewhere, old, unnamed = (tmp_path / f"building-{name}" for name in ("other-1-abc", "other-2-abc", "xyz"))
    for folder in (running, elsewhere, old, unnamed):
        folder.mkdir()
    long_ago = time.time() - building.LONGEST_BUILD - 60
    os.utime(old, (long_ago, long_ago))
    building.remove_killed_builds(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([running, elsewhere, unnamed])


@pytest.mark.parametrize(
    ("words", "can_resume", "line"),
    [
        ([], False, "interrupted\n"),
        ([], True, "interrupted: with --save_every=10 a run saves itself, and --resume_from=latest resumes it\n"),
        (["--save-every", "5"], True,
         "interrupted: the same command with --resume_from=latest resumes the run where it was last saved\n"),
    ],
)  # fmt: skip
def test_an_interrupted_script_ends_with_one_line(
    building: ModuleType, words: list[str], can_resume: bool, line: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    with pytest.raises(SystemExit, match="130"), building.one_line_if_interrupted(can_resume):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("script", sorted({script for runs in SHORT_RUNS.values() for script, _ in runs}))
def test_every_example_ends_so(script: str) -> None:
    """From `if __name__` on, which an import leaves out."""
    _, _, started = (EXAMPLES / script).read_text(encoding="utf-8").partition('if __name__ == "__main__":\n')
    assert started.startswith("    with one_line_if_interrupted(")


def test_axes_carry_units(building: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes
    from sentiment.report import draw_curves

    labels = {}
    plain = Axes.set
    monkeypatch.setattr(
        Axes, "set", lambda self, **given: (labels.update({given["title"]: given["ylabel"]}), plain(self, **given))
    )
    draw_curves([{"reward": 1.0, "KL": 2.0, "entropy": 1.0}], tmp_path / "curves.png")
    assert labels == {"reward": "mean score", "KL": "nats per response", "entropy": "nats per token"}
