"""`benchmarks/gpu_check.py`: what is cut off still tells, and its sections run on a CPU with small models."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmark_tables import gpu_sentences
from tests.limits import HANG
from tests.markdown_pages import ROOT

FOLDERS = [str(ROOT / "benchmarks"), str(ROOT / "benchmarks" / "gpu")]
sys.path[:0] = FOLDERS
gpu_check, records = (importlib.import_module(name) for name in ("gpu_check", "records"))
MARK, Record, records_in = records.MARK, records.Record, records.records_in
# an example has a module of the same name as one of these
sys.path[:] = [folder for folder in sys.path if folder not in FOLDERS]
for name in ("report", "cases", "records"):
    sys.modules.pop(name, None)

SECTION = """
import sys
sys.path.insert(0, {gpu!r})
from records import Section
section = Section()
section.check("right", 1e-7, 1e-6)
section.goal("fast", 3.0, 2.0, "s")
with section.attempt("broken"):
    raise RuntimeError("what it said\\nmore")
section.check("not a number", float("nan"), 1.0)
section.absent("other", "no wheel")
{then}
"""


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(device="cpu", tiny=True, wheels=None, out=tmp_path / "gpu.json", limit=None)


def write_section(monkeypatch: pytest.MonkeyPatch, folder: Path, then: str) -> None:
    monkeypatch.setattr(gpu_check, "SCRIPTS", folder)
    text = SECTION.format(gpu=str(ROOT / "benchmarks" / "gpu"), then=then)
    (folder / "right.py").write_text(text, encoding="utf-8")


def test_a_section_that_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: Namespace) -> None:
    write_section(monkeypatch, tmp_path, "")
    found = gpu_check.run_section("right", HANG, options)
    records = [Record(**each) for each in found["records"]]
    assert found["end"] == "done"
    assert [(each.name, each.kind, each.passed) for each in records] == [
        ("right", "check", True),
        ("fast", "goal", False),
        ("broken", "check", False),
        ("not a number", "check", False),
        ("other", "absent", None),
    ]
    assert records[2].note == "RuntimeError: what it said"
    assert "more" in found["output"], "the traceback is kept"
    assert gpu_check.is_wrong(found)
    assert not gpu_check.is_wrong({**found, "records": found["records"][:2]}), "a goal that is missed is not wrong"


@pytest.mark.parametrize(
    ("then", "limit", "end"),
    [
        ("import time\ntime.sleep(1000)", 12.0, "cut off after 12 s"),
        ("sys.exit(3)", HANG, "failed with exit status 3"),
    ],
)
def test_what_a_section_reported_before_its_end_is_kept(
    then: str, limit: float, end: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: Namespace
) -> None:
    write_section(monkeypatch, tmp_path, then)
    found = gpu_check.run_section("right", limit, options)
    assert (found["end"], len(found["records"])) == (end, 5)
    assert gpu_check.is_wrong({**found, "records": []})


def test_the_file_is_whole_after_every_section(
    monkeypatch: pytest.MonkeyPatch, options: Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[dict[str, Any]] = []

    def run_section(name: str, limit: float, arguments: Namespace) -> dict[str, Any]:
        if options.out.exists():
            written.append(json.loads(options.out.read_text()))
        record = Record("n", "check", 1.0, "", 0.5)
        return {"end": "done", "seconds": 1.0, "records": [vars(record)]}

    monkeypatch.setattr(gpu_check, "run_section", run_section)
    monkeypatch.setattr(gpu_check, "read_arguments", lambda: options)
    options.sections, options.commit = ["right", "waiting", "head"], "abc"
    assert gpu_check.main() == 1
    assert [list(each["sections"]) for each in written] == [["right"], ["right", "waiting"]]
    assert written[0]["machine"]["commit"] == "abc"
    told = capsys.readouterr().out
    assert "WRONG  n  1  <= 0.5" in told
    assert "wrong: right, waiting, head" in told


def test_a_line_that_is_cut_off_is_left_out() -> None:
    whole = json.dumps(vars(Record("a", "figure", 1.0)))
    assert records_in(f"x\n{MARK}{whole}\n{MARK}{whole[:10]}") == [Record("a", "figure", 1.0)]


def test_the_readme_says_what_was_seen() -> None:
    records = [
        Record("right", "check", 0.0, "", 1.0),
        Record("odd", "check", 2.0, "", 1.0),
        Record("broken", "check", None, "", None, "an error"),
        Record("fast", "goal", 3.0, "s", 2.0),
        Record("tokens", "figure", 5.0),
        Record("trl-0.11.4", "absent", note="no wheel"),
    ]
    end = {"records": [vars(record) for record in records], "seconds": 1.0}
    found = {
        "machine": {"date": "2026-12-01", "commit": "abc"}, "device": "NVIDIA H100", "torch": "2.11",
        "sections": {"right": {**end, "end": "done"}, "head": {"records": [], "end": "cut off after 50 s"}},
    }  # fmt: skip
    assert gpu_sentences(found) == (
        "**GPUs:** seen on one NVIDIA H100 on 2026-12-01 (commit abc, torch 2.11): 1 of 3 checks of `make gpu-check` "
        "passed, 0 of 1 goals were reached. Wrong: odd; broken. Goals missed: fast. Not seen: trl-0.11.4; head (cut "
        "off after 50 s)."
    )


def test_all_limits_together_fit_into_eight_minutes() -> None:
    assert math.fsum(part.limit for part in gpu_check.SECTIONS.values()) <= 8 * 60
    assert {f"{name}.py" for name in gpu_check.SECTIONS} <= {path.name for path in gpu_check.SCRIPTS.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("section", gpu_check.SECTIONS)
def test_a_section_runs_on_a_cpu(section: str, tmp_path: Path) -> None:
    """Slow: each imports transformers and runs small models. The packages that a GPU machine lacks are blocked."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules.update(dict.fromkeys(('tyro', 'datasets', 'rich', 'matplotlib', 'wandb')))\n"
    )
    out = tmp_path / "gpu.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--tiny", "--out", str(out),
         "--sections", section, "--limit", str(10 * HANG)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=11 * HANG,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (found,) = json.loads(out.read_text())["sections"].values()
    assert [each["name"] for each in found["records"]]
