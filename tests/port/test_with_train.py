"""Scripts of TRL 0.12 to 1.9, whose `PPOConfig` and `PPOTrainer` are those with `train()`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import trl_step
from trl_step.port.releases import origin_of
from trl_step.port.rewrite import rewritten, undecided
from trl_step.port.run import run_script
from trl_step.port.with_train import uses_train

STEP = "c = PPOConfig(learning_rate=1e-5)\nt = PPOTrainer(c, m, r, tok, dataset=d)\nt.step(q, a, s)\n"
BY_TRAIN = "t = PPOTrainer(c, tok, m, r, rm, d, v)\nt.train()\n"
BY_ARGUMENT = "t = PPOTrainer(c, tok, m, r, reward_model=rm, train_dataset=d)\n"
BY_CONFIG = "c = PPOConfig(output_dir='o', num_ppo_epochs=1)\n"


@pytest.mark.parametrize(
    ("script", "expected"), [(STEP, False), (BY_TRAIN, True), (BY_ARGUMENT, True), (BY_CONFIG, True)]
)
def test_which_ppo_a_script_means(script: str, expected: bool) -> None:
    assert uses_train(ast.walk(ast.parse(script))) is expected


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (f"from trl import PPOTrainer\n{BY_TRAIN}", f"from trl_step.experimental.ppo import PPOTrainer\n{BY_TRAIN}"),
        (f"from trl import PPOTrainer\n{STEP}", f"from trl_step import PPOTrainer\n{STEP}"),
        (f"from trl.experimental.ppo import PPOConfig\n{BY_CONFIG}",
         f"from trl_step.experimental.ppo import PPOConfig\n{BY_CONFIG}"),
        (f"from trl.trainer.ppo_trainer import PPOTrainer\n{BY_TRAIN}",
         f"from trl_step.experimental.ppo import PPOTrainer\n{BY_TRAIN}"),
        ("from trl import PPOTrainer\nPPOTrainer(config=c, tokenizer=k, policy=m, ref_policy=r, reward_model=w)\n",
         "from trl_step.experimental.ppo import PPOTrainer\n"
         "PPOTrainer(args=c, processing_class=k, model=m, ref_model=r, reward_model=w)\n"),
        ("from trl import PPOConfig\nPPOConfig(output_dir='o', evaluation_strategy='no')\n",
         "from trl_step.experimental.ppo import PPOConfig\nPPOConfig(output_dir='o', eval_strategy='no')\n"),
        ("from trl import RLOOConfig\nRLOOConfig('o', no_cuda=True)\n",
         "from trl_step import RLOOConfig\nRLOOConfig('o', use_cpu=True)\n"),
    ],
)  # fmt: skip
def test_imports_and_arguments_are_rewritten(old: str, new: str) -> None:
    assert rewritten(old.encode())[0].decode() == new
    assert rewritten(new.encode())[0].decode() == new


def test_other_names_of_the_import_stay() -> None:
    old = f"from trl import ModelConfig, PPOConfig, PPOTrainer\n{BY_CONFIG}{BY_TRAIN}"
    new = rewritten(old.encode())[0].decode()
    assert "from trl_step import ModelConfig\n" in new
    assert "from trl_step.experimental.ppo import PPOConfig\n" in new
    assert "from trl_step.experimental.ppo import PPOTrainer\n" in new


def test_defaults_of_the_step_api_are_not_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    for text, count in ((f"from trl import PPOConfig\n{BY_CONFIG}", 0), ("from trl import PPOConfig\nPPOConfig()\n", 1)):
        assert len(undecided(text.encode(), origin_of(script, text, None))) == count


def test_an_unchanged_script_gets_the_classes_that_it_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = trl_step.PPOTrainer
    script = tmp_path / "script.py"
    script.write_text("from trl import PPOConfig, PPOTrainer\nprint(PPOTrainer.__module__)\nPPOConfig(output_dir='o')\n")
    run_script(str(script))
    script.write_text("from trl import PPOTrainer\nprint(PPOTrainer.__module__)\n")
    run_script(str(script))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trl_step.")]
    assert said == ["trl_step.experimental.ppo.ppo_trainer", "trl_step.trainer.ppo_trainer"]
    assert trl_step.PPOTrainer is before
