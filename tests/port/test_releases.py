"""Defaults of `PPOConfig` that release 0.7.11 changed: which release a script is of, and what the kit does about it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import tyro
from transformers import HfArgumentParser

from tests.port.test_run import run
from trl_step import PPOConfig
from trl_step.port.command_line import main
from trl_step.port.releases import UNKNOWN_ORIGIN, Origin, origin_of
from trl_step.port.rewrite import rewritten, undecided

OLD, NEW = Origin(("0.7.4",), "--release"), Origin(("0.8.6",), "--release")

ALL = ", batch_size=256, mini_batch_size=1, learning_rate=1e-05"
CHANGES = [
    ("PPOConfig(batch_size=1)", "PPOConfig(batch_size=1, mini_batch_size=1, learning_rate=1e-05)"),
    ("PPOConfig()", f"PPOConfig({ALL[2:]})"),
    ("trl.PPOConfig(seed=(1),)", f"trl.PPOConfig(seed=(1){ALL},)"),
    ("PPOConfig(\n    seed=1,  # one\n)", f"PPOConfig(\n    seed=1{ALL},  # one\n)"),
    ("PPOConfig(**{'batch_size': 8, 'mini_batch_size': 2})",
     "PPOConfig(**{'batch_size': 8, 'mini_batch_size': 2}, learning_rate=1e-05)"),
    ("c = PPOConfig(batch_size=8, mini_batch_size=2, learning_rate=1)\nload(c.model_name)",
     "c = PPOConfig(batch_size=8, mini_batch_size=2, learning_rate=1, model_name=None)\nload(c.model_name)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_the_defaults_of_the_release_are_written(old: str, new: str) -> None:
    got, edits = rewritten(f"import trl\nfrom trl import PPOConfig\n{old}\n".encode(), OLD)
    assert got.decode() == f"import trl_step as trl\nfrom trl_step import PPOConfig\n{new}\n"
    assert sum("of TRL 0.7.4 (--release)" in edit.note for edit in edits) == 1
    assert rewritten(got, OLD) == (got, [])


@pytest.mark.parametrize("origin", [NEW, UNKNOWN_ORIGIN])
def test_the_defaults_of_a_later_or_an_unknown_release_are_not_written(origin: Origin) -> None:
    assert rewritten(b"from trl import PPOConfig\nPPOConfig(batch_size=1)\n", origin)[0].count(b"=") == 1


def test_a_script_of_this_package_is_left_alone() -> None:
    source = b"from trl_step import PPOConfig\nPPOConfig(batch_size=1)\n"
    assert rewritten(source, OLD) == (source, [])
    assert undecided(source, UNKNOWN_ORIGIN) == []


@pytest.mark.parametrize(
    ("call", "asks"),
    [
        ("PPOConfig(batch_size=1)", "leaves out mini_batch_size, learning_rate: "),
        ("PPOConfig(batch_size=1, mini_batch_size=1, learning_rate=1)", ""),
        ("HfArgumentParser((Mine, PPOConfig))", "leaves out batch_size, mini_batch_size, learning_rate: "),
        ("isinstance(x, PPOConfig)", ""),
        ("Mine(PPOConfig)", "leaves out batch_size"),
        ("class Mine(PPOConfig):\n    learning_rate: float = 1e-3", "leaves out batch_size, mini_batch_size: "),
        ("class Mine:\n    ppo: PPOConfig", "leaves out batch_size"),
        ("C = PPOConfig", "leaves out batch_size"),
        ("parts = (Mine, PPOConfig)", "leaves out batch_size"),
        ("kinds = {'ppo': PPOConfig}", "leaves out batch_size"),
        ("def main(ppo: PPOConfig): ...\ntyro.cli(main)", "leaves out batch_size"),
        ("def main(ppo: PPOConfig): ...\nmain(made)", ""),
    ],
)
def test_an_unknown_release_is_asked_for_if_it_matters(call: str, asks: str) -> None:
    found = undecided(f"from trl import PPOConfig\n{call}\n".encode(), UNKNOWN_ORIGIN)
    assert [line for line, _ in found] == [2] * bool(asks)
    assert all(asks in text and "mini_batch_size 1 to 128" in text and "--release 0.7.4" in text for _, text in found)


def test_what_cannot_be_written_is_left_to_the_user() -> None:
    source = b"from trl import PPOConfig\nPPOConfig(**settings)\ntyro.cli(PPOConfig)\n"
    assert b"batch_size" not in rewritten(source, OLD)[0]
    (first, one), (second, two) = undecided(source, OLD)
    assert (first, second) == (2, 3)
    assert "may leave out batch_size, mini_batch_size, learning_rate: in TRL 0.7.4 (--release)" in one
    assert "was batch_size=256, mini_batch_size=1, learning_rate=1e-05" in two
    assert undecided(source, NEW) == []


def test_a_star_import_brings_the_class_too() -> None:
    got, _ = rewritten(b"from trl import *\nPPOConfig(batch_size=1, mini_batch_size=1)\n", OLD)
    assert got == b"from trl_step import *\nPPOConfig(batch_size=1, mini_batch_size=1, learning_rate=1e-05)\n"


PINS = [
    ("requirements.txt", "torch\ntrl[peft]==0.7.4  # old\n", ("0.7.4",), 2),
    ("requirements-train.txt", "trl == 0.8.6\n", ("0.8.6",), 1),
    ("requirements.txt", "trl @ git+https://github.com/huggingface/trl@v0.7.10\n", ("0.7.10",), 1),
    ("requirements.txt", "trl>=0.7.9,<0.8.0\n", ("0.7.9", "0.7.10", "0.7.11"), 1),
    ("requirements.txt", "trl<=0.2.1\n", ("0.2.0", "0.2.1"), 1),
    ("requirements.txt", "trl~=0.11.2\n", ("0.11.2", "0.11.3", "0.11.4"), 1),
    ("requirements.txt", "trlx==0.7.4\nmy-trl==0.7.4\ntrl\ntrl>=1.12\n", (), 0),
    ("pyproject.toml", '[project]\ndependencies = [\n    "trl==0.9.6",\n]\n', ("0.9.6",), 3),
    ("pyproject.toml", '[tool.poetry.dependencies]\ntrl = "^0.10.0"\n', ("0.10.1",), 2),
    ("environment.yml", "dependencies:\n  - trl=0.7.5\n", ("0.7.5",), 2),
    ("poetry.lock", '[[package]]\nname = "trl"\nversion = "0.7.2"\n', ("0.7.2",), 2),
    ("requirements.txt", "# trl==0.8.6\ntrl==0.7.4  # not 0.7.5\n", ("0.7.4",), 2),
    ("requirements.txt", "# trl==0.8.6\ntrl\n", (), 0),
    ("requirements.txt", "TRL==0.7.4\n", ("0.7.4",), 1),
    ("requirements.txt", "trl==0.10.*\n", ("0.10.1",), 1),
    ("requirements.txt", "trl (>=0.9,<0.9.4)\n", ("0.9.2", "0.9.3"), 1),
    ("requirements.txt", "https://example.org/trl-0.7.4-py3-none-any.whl\n", ("0.7.4",), 1),
    ("req.txt", "trl==0.7.4\n", ("0.7.4",), 1),
    ("requirements/train.txt", "trl==0.7.4\n", ("0.7.4",), 1),
    ("environment.yml", "dependencies:\n  - trl=0.9\n", ("0.9.2", "0.9.3", "0.9.4", "0.9.6"), 2),
    ("environment.yml", "dependencies:\n  - trl=0.9.2=py_0\n", ("0.9.2",), 2),
    ("conda-gpu.yaml", "dependencies:\n  - trl=0.7.5\n", ("0.7.5",), 2),
    (
        "pyproject.toml",
        '[tool.poetry.dependencies]\ntrl = {extras = ["peft"], version = "^0.9.4"}\n',
        ("0.9.4", "0.9.6"),
        2,
    ),
    ("pyproject.toml", '[tool.poetry.dependencies]\ntrl = "~0.9.4"\n', ("0.9.4", "0.9.6"), 2),
    ("pyproject.toml", '[tool.uv.sources]\ntrl = { git = "https://example.org/t", tag = "v0.7.4" }\n', ("0.7.4",), 2),
    ("pyproject.toml", '[tool.poetry.dependencies.trl]\noptional = true\nversion = "0.7.4"\n', ("0.7.4",), 1),
    ("Dockerfile", "RUN pip install trl==0.7.4\n", ("0.7.4",), 1),
    ("Pipfile.lock", '{\n"trl": {\n"hashes": ["x"],\n"version": "==0.7.7"}}', ("0.7.7",), 2),
]


@pytest.mark.parametrize(("name", "content", "releases", "line"), PINS)
def test_pins(tmp_path: Path, name: str, content: str, releases: tuple[str, ...], line: int) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    found = origin_of(tmp_path / "old.py", "import trl\n", None)
    assert found.releases == releases
    assert found.named_by == (f"{path.name}:{line}" if releases else "")


def test_a_pin_is_looked_for_in_the_script_and_up_to_the_root_of_the_repository(tmp_path: Path) -> None:
    script = tmp_path / "repository" / "examples" / "old.py"
    script.parent.mkdir(parents=True)
    (tmp_path / "requirements.txt").write_text("trl==0.7.4\n")
    assert origin_of(script, "", None) == UNKNOWN_ORIGIN
    (tmp_path / "repository" / ".git").mkdir()
    assert origin_of(script, "", None) == UNKNOWN_ORIGIN
    (tmp_path / "repository" / "requirements.txt").write_text("trl==0.7.5\n")
    assert origin_of(script, "", None).releases == ("0.7.5",)
    assert origin_of(script, "# pip install trl==0.7.6\n", None) == Origin(("0.7.6",), "old.py:1")
    two = "# pip install trl==0.7.8\nos.system('pip install trl==0.7.6')\n"
    assert origin_of(script, two, None) == Origin(("0.7.6",), "old.py:2")
    assert origin_of(script, "# pip install trl==0.7.6\n", "0.7.7") == Origin(("0.7.7",), "--release")


def test_a_range_of_releases_counts_if_its_defaults_agree() -> None:
    assert Origin(("0.7.9", "0.7.10")).defaults["mini_batch_size"] == 1
    assert Origin(("0.7.10", "0.7.11")).defaults is None
    assert Origin(("0.2.0", "0.4.7", "0.7.1")).defaults == Origin(("0.7.1",)).defaults
    assert Origin(("0.4.7",)).defaults["target_kl"] == 0.1
    assert Origin(("0.8.6", "0.11.4")).defaults == {}, "a name that only scripts read differs"
    (found,) = undecided(b"import trl\ntrl.PPOConfig()", Origin(("0.7.10", "0.7.11"), "r.txt:1"))
    assert "TRL 0.7.10 to 0.7.11 (r.txt:1) allows both" in found[1]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "old.py"
    path.write_text("from trl import PPOConfig\nconfig = PPOConfig(batch_size=1)\n")
    assert main(["--check", str(path)]) == 1
    assert f"{path}:2: PPOConfig(batch_size=1) leaves out mini_batch_size" in capsys.readouterr().out
    assert main(["--check", "--release", "0.7.4", str(path)]) == 1
    assert f"{path}:2: mini_batch_size=1, learning_rate=1e-05 added" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["--check", "--release", "1.12.0", str(path)])
    refused = capsys.readouterr().err
    assert "--release 1.12.0: the releases with the step API are 0.2.0, " in refused
    assert "those with PPO with train() are 0.12.0, " in refused
    (tmp_path / "requirements.txt").write_text("trl==0.7.4\n")
    assert main(["--write", str(path)]) == 0
    assert "of TRL 0.7.4 (requirements.txt:1)" in capsys.readouterr().out
    assert "PPOConfig(batch_size=1, mini_batch_size=1, learning_rate=1e-05)" in path.read_text()
    assert main(["--check", str(path)]) == 0


SCRIPT = """
import sys, tyro
from dataclasses import dataclass
from transformers import HfArgumentParser
from trl import PPOConfig
@dataclass
class Mine(PPOConfig):
    mine: int = 1
made = [PPOConfig(batch_size=256), tyro.cli(PPOConfig, args=[]), Mine(),
        *HfArgumentParser(PPOConfig).parse_args_into_dataclasses([])]
"""


def test_a_running_script_has_the_defaults_of_its_release() -> None:
    before, told = dataclasses.asdict(PPOConfig()), []
    for config in run(SCRIPT, told, OLD)["made"]:
        settings = (config.batch_size, config.mini_batch_size, config.learning_rate, config.model_name)
        assert settings == (256, 1, 1e-5, None)
    assert told[0].startswith("old.py:9: PPOConfig -> batch_size=256, mini_batch_size=1, ")
    assert told[0].endswith("(defaults of TRL 0.7.4 (--release))")
    assert dataclasses.asdict(PPOConfig()) == before
    assert dataclasses.asdict(tyro.cli(PPOConfig, args=[])) == before
    assert dataclasses.asdict(HfArgumentParser(PPOConfig).parse_args_into_dataclasses([])[0]) == before


def test_a_running_script_of_an_unknown_release_is_asked_about() -> None:
    told: list[str] = []
    run("from trl import PPOConfig\nPPOConfig(batch_size=8, mini_batch_size=8, learning_rate=1)", told)
    assert told == []
    config = run("from trl import PPOConfig\nconfig = PPOConfig(batch_size=8)", told)["config"]
    assert config.mini_batch_size == 8
    (line,) = told
    assert line.startswith("old.py:2: PPOConfig without mini_batch_size, learning_rate -> the defaults of 0.7.11; ")
    assert "--release 0.7.4" in line


def test_a_script_that_is_run_with_a_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["trl_step"])
    path = tmp_path / "old.py"
    path.write_text("from trl import PPOConfig\nprint(PPOConfig().batch_size)\n")
    assert main(["--release", "0.7.4", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out == "256\n"
    assert f"trl_step.port: {path}:2: PPOConfig -> " in said.err
