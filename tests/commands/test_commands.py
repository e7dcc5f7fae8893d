"""The console command: its list, the doctor's reading of saved runs, the facts for a report, the way to the demo."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from torch.utils.tensorboard import SummaryWriter
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import trl_step
from tests.markdown_pages import ROOT
from trl_step.algorithms.diagnosis.checkup import Checkup
from trl_step.algorithms.diagnosis.findings import Diagnosis
from trl_step.commands import main, sentiment_demo
from trl_step.commands.facts import facts
from trl_step.commands.saved_runs import saved_runs

SOUND = {"objective/kl": 0.4, "ppo/policy/entropy": 2.0, "ppo/mean_scores": 1.0, "ppo/std_scores": 0.5}
NEGATIVE_KL = SOUND | {"objective/kl": -3.0}


def write_lines(path: Path, steps: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(step) for step in steps) + "\n\n")
    return path


def test_without_arguments_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    listed = re.findall(r"• (\w+)", capsys.readouterr().out)
    assert listed == ["demo", "port", "doctor", "serve", "env"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == trl_step.__version__


@pytest.mark.parametrize("words", [["--help"], ["port", "--check", "old.py"], ["port", "--help"], ["env"]])
def test_a_reader_that_has_enough_sees_no_traceback(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "old.py").write_text("import trl\n")
    command = [sys.executable, "-m", "trl_step", *words]
    running = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    assert running.stderr.read() == ""
    assert running.wait() in (0, 1)  # argparse ends well


def test_port_takes_all_that_follows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "old.py"
    script.write_text("import sys, trl\nprint(trl.__name__, sys.argv[1:])\n")
    assert main(["port", str(script), "--check", "env"]) == 0
    assert capsys.readouterr().out.strip() == "trl_step ['--check', 'env']"
    assert main(["port", "--check", str(script)]) == 1


# --- doctor --------------------------------------------------------------------------------------------------


def test_doctor_reads_json_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = write_lines(tmp_path / "sound.jsonl", [SOUND | {"text": "x", "list": [1]}] * 3)
    assert main(["doctor", str(sound)]) == 0
    assert capsys.readouterr().out.startswith(f"{sound}: 3 steps\nnothing is wrong")
    ill = write_lines(tmp_path / "ill.jsonl", [SOUND, NEGATIVE_KL])
    assert main(["doctor", str(ill)]) == 1
    assert "KL" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert f"{sound}: 3 steps" in told
    assert f"{ill}: 2 steps" in told


def test_doctor_looks_at_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    look = Checkup.look

    def counted(checkup: Checkup, stats: dict[str, float]) -> list[Diagnosis]:
        looks.append(stats["number"])
        return look(checkup, stats)

    monkeypatch.setattr(Checkup, "look", counted)
    write_lines(tmp_path / "run.jsonl", [SOUND | {"number": float(number)} for number in range(3)])
    assert main(["doctor", str(tmp_path)]) == 0
    assert looks == [0, 1, 2]


def test_doctor_reads_one_list_of_all_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stats.json"
    path.write_text(json.dumps([SOUND, NEGATIVE_KL], indent=1))
    assert main(["doctor", str(path)]) == 1
    assert f"{path}: 2 steps\nstep 2: the KL" in capsys.readouterr().out
    path.write_text("[{}, 1]")
    with pytest.raises(SystemExit, match=r"stats\.json: entry 2 is a float; the statistics of a step are an object"):
        main(["doctor", str(path)])


def test_doctor_reads_tensorboard_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = SummaryWriter(str(tmp_path / "run"))
    for step, stats in enumerate([SOUND, SOUND, NEGATIVE_KL], start=1):
        for key, value in stats.items():
            writer.add_scalar(key, value, step)
    writer.add_hparams({"lr": 0.1}, {"x": 1.0})  # goes into a folder of its own, without statistics
    writer.close()
    ((_, steps),) = saved_runs(tmp_path)
    assert [step["objective/kl"] for step in steps] == pytest.approx([0.4, 0.4, -3.0])
    assert main(["doctor", str(tmp_path)]) == 1
    assert "run: 3 steps" in capsys.readouterr().out
    (file,) = (tmp_path / "run").glob("events*")
    assert main(["doctor", str(file)]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n{", r"run\.jsonl:2 is not JSON"),
        ("{}\n\n[1]", r"run\.jsonl:3 is a list"),
        (None, "has no statistics"),
        ("", "has no stat"),
    ],
)
def test_doctor_says_what_it_cannot_read(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.jsonl").write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["doctor", str(tmp_path)])


def test_doctor_says_that_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"there is no file or folder nonexist .looked for {Path.cwd() / 'nonexist'}"):
        main(["doctor", "nonexist"])


def test_doctor_does_not_pass_what_it_cannot_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(write_lines(tmp_path / "losses.jsonl", [{"loss": 1.0}]))]) == 1
    told = capsys.readouterr().out
    assert "it cannot judge this run" in told
    assert "nothing is wrong" not in told


def test_doctor_passes_over_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sound = write_lines(tmp_path / "sound.jsonl", [SOUND])
    write_lines(tmp_path / "prompts.jsonl", [{"text": "x", "label": 1}])
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "events.out.tfevents.1").mkdir()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert [path for path, _ in saved_runs(tmp_path)] == [sound]
    assert list(saved_runs(tmp_path / "prompts.jsonl")) == [(tmp_path / "prompts.jsonl", [{"label": 1.0}])]


@pytest.mark.parametrize(
    "line",
    [
        '{"objective/kl": 1%s}' % ("0" * 5000),
        '\ufeff{"objective/kl": 1}',
        '{"objective/kl": 1, "text": "a\u2028b\x85c"}',
    ],
)
def test_doctor_reads_whatever_is_json(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    ((_, steps),) = saved_runs(tmp_path)
    assert steps == [{"objective/kl": math.inf if len(line) > 1000 else 1.0}]


def test_doctor_is_not_brought_down_by_bytes_and_depth(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"objective/kl": 1, "text": "\xe4"}\n')
    assert [steps for _, steps in saved_runs(tmp_path)] == [[{"objective/kl": 1.0}]]
    (tmp_path / "b.jsonl").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(SystemExit, match=r"b\.jsonl:1 is not JSON"):
        main(["doctor", str(tmp_path)])


@pytest.mark.parametrize("name", [b"\x1b[31m\r.jsonl", b"\xff.jsonl"])
def test_names_do_not_steer_the_terminal(tmp_path: Path, name: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    write_lines(path, [SOUND])
    assert main(["doctor", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert told.encode().isascii()
    assert "\\x1b[31m\\r" in told or "\\udcff" in told
    path.write_text("{")
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", str(tmp_path)])
    assert str(stopped.value).isprintable()


# --- env -----------------------------------------------------------------------------------------------------


def test_facts_name_versions_and_hold_no_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("WANDB_API_KEY", "verysecret")
    monkeypatch.setenv("HOME", str(ROOT))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["env"]) == 0
    told = capsys.readouterr().out
    assert f"- trl_step: {trl_step.__version__} in ~/trl_step\n" in told
    assert f"- torch: {metadata.version('torch')}\n" in told  # a wheel of PyPI has no "+cu130" there
    assert "- accelerators: " in told
    assert "- LOCAL_RANK: 1\n" in told
    assert "verysecret" not in told
    monkeypatch.setenv("HOME", "/")
    assert f" in {trl_step.__path__[0]}" in facts()["trl_step"]


# --- demo ----------------------------------------------------------------------------------------------------


def test_demo_of_a_clone_is_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["demo", "--help"])
    told = "".join(capsys.readouterr().out.split())
    assert "ppo_sentiment.py" in told
    assert f"(default:{ROOT}/.cache/sentiment)" in re.sub(r"[│╭╰─]", "", told)
    assert "--init-kl-coef" in told.replace("_", "-")


def test_demo_of_an_installed_package_is_its_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sentiment_demo, "PACKAGE", tmp_path)
    with pytest.raises(FileNotFoundError, match="install trl_step with pip"):
        main(["demo"])
    script = tmp_path / "examples/sentiment/ppo_sentiment.py"
    script.parent.mkdir(parents=True)
    (script.parent / "neighbour.py").write_text("name = 'neighbour'\n")
    script.write_text("import sys, neighbour\nprint(neighbour.name, *sys.argv[1:])\n")
    assert main(["demo", "--seed=2"]) == 0
    assert capsys.readouterr().out.strip() == "neighbour --seed=2"


def test_the_demo_names_all_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentiment_demo, "find_spec", {"rich": object()}.get)
    with pytest.raises(SystemExit, match=r"needs matplotlib, tensorboard: pip install matplotlib tensorboard$"):
        main(["demo"])


def test_what_the_demo_builds_is_for_other_programs_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"train_reviews": 40, "test_reviews": 8, "vocabulary": 400, "layers": 1, "width": 16,
            "model_updates": 2, "classifier_updates": 2}  # fmt: skip
    own = ModuleType("assets")
    monkeypatch.setitem(sys.modules, "assets", own)
    monkeypatch.delitem(sys.modules, "corpus", raising=False)
    path = list(sys.path)
    built = sentiment_demo.demo_assets(tmp_path, **tiny)
    assert len((built.reviews / "train.jsonl").read_text().splitlines()) == 40
    assert AutoModelForCausalLM.from_pretrained(built.model).config.n_embd == 16
    assert AutoModelForSequenceClassification.from_pretrained(built.classifier).config.label2id["POSITIVE"] == 1
    assert (sys.modules["assets"], sys.path) == (own, path)
    assert "corpus" not in sys.modules
    written = (built.model / "model.safetensors").stat().st_mtime_ns
    assert sentiment_demo.demo_assets(str(tmp_path), **tiny) == built
    assert (built.model / "model.safetensors").stat().st_mtime_ns == written
