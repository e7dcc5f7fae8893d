"""The files around the code agree with it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import trl_step
from tests.markdown_pages import ROOT


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_citation_names_the_version() -> None:
    assert f"version: {trl_step.__version__}\n" in text_of("CITATION.cff")


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    steps = text_of(".github/workflows/ci.yml")
    assert "run: .ci/run" in steps
    targets = re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE)
    assert set(re.findall(r"run: make ([a-z-]+)", steps)) <= set(targets)


def test_the_pythons_of_the_workflow_are_those_of_the_package() -> None:
    named = set(re.findall(r"Python :: (3\.\d+)", text_of("setup.py")))
    assert set(re.findall(r'"(3\.\d+)"', text_of(".github/workflows/ci.yml"))) == named


def test_constraints_pin_each_package_once_on_each_python() -> None:
    pins = [Requirement(line) for line in text_of("constraints.txt").splitlines() if not line.startswith("#")]
    for python in set(re.findall(r"Python :: (3\.\d+)", text_of("setup.py"))):
        here = [pin.name for pin in pins if pin.marker is None or pin.marker.evaluate({"python_version": python})]
        assert sorted(here) == sorted({pin.name for pin in pins}), python


@pytest.mark.parametrize(
    "origin",
    ["https://github.com/owner/name", "https://github.com/owner/name.git", "git@github.com:owner/name.git"],
)
def test_project_urls_are_those_of_the_clone(tmp_path: Path, origin: str) -> None:
    urls = [
        "Project-URL: Source, https://github.com/owner/name",
        "Project-URL: Documentation, https://github.com/owner/name/tree/main/docs",
        "Project-URL: Changelog, https://github.com/owner/name/blob/main/CHANGELOG.md",
        "Project-URL: Issues, https://github.com/owner/name/issues",
    ]
    assert url_lines(tmp_path, origin) == urls
    shutil.rmtree(tmp_path / ".git")  # a source distribution is built from it, and a wheel from that
    shutil.copy(tmp_path / "trl_step.egg-info" / "PKG-INFO", tmp_path)
    assert url_lines(tmp_path) == urls


@pytest.mark.parametrize("origin", ["", "https://user:secret@github.com/owner/name", "/a/folder"])
def test_without_an_address_of_the_project_there_are_no_urls(tmp_path: Path, origin: str) -> None:
    assert url_lines(tmp_path, origin) == []


def url_lines(folder: Path, origin: str = "") -> list[str]:
    """What the metadata of a build says, in a clone of `origin` if one is given."""
    for name in ("setup.py", "README.md", "LICENSE", "trl_step/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "examples" / "sentiment").mkdir(parents=True, exist_ok=True)
    if origin:
        subprocess.run(["git", "init", "-q", str(folder)], check=True)
        subprocess.run(["git", "-C", str(folder), "remote", "add", "origin", origin], check=True)
    subprocess.run([sys.executable, "setup.py", "-q", "egg_info"], cwd=folder, check=True, capture_output=True)
    metadata = (folder / "trl_step.egg-info" / "PKG-INFO").read_text(encoding="utf-8")
    return [line for line in metadata.splitlines() if line.startswith("Project-URL")]


def tracked() -> list[str]:
    """Files of the repository; none in an unpacked source distribution."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a clone")
    return listed.stdout.splitlines()


def test_a_source_distribution_holds_every_folder_and_file() -> None:
    """setuptools adds these by itself: the package, setup.py, pyproject.toml, README.md and MANIFEST.in."""
    lines = [line.split() for line in text_of("MANIFEST.in").splitlines() if line.startswith(("graft", "include"))]
    named = {name for _, *names in lines for name in names}
    by_itself = {"trl_step", "setup.py", "pyproject.toml", "README.md", "MANIFEST.in"}
    assert {name.partition("/")[0] for name in tracked()} == named | by_itself


def test_a_wheel_holds_what_the_package_reads() -> None:
    """A file that is no module must be in `package_data`."""
    inside = [Path(name) for name in tracked() if name.startswith("trl_step/") and not name.endswith(".py")]
    assert [str(name) for name in inside] == ["trl_step/py.typed"]
    assert '"trl_step": ["py.typed"]' in text_of("setup.py")
    folders = {Path(name).parent for name in tracked() if name.startswith("trl_step/") and name.endswith(".py")}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)
