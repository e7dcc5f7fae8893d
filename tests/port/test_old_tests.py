"""The test files of release 0.7.11, from its source archive, run by the porting kit on small local models."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.markdown_pages import ROOT
from tests.port.old_models import write_models

RELEASE = "0.7.11"
FREED = "gradients are freed after the step of the optimizer, and the test looks at them"
MESSAGE = "the error has other words"
FILES = "the value head is written as safetensors, not as pytorch_model.bin"
SMALL = "a data set of less than one batch is refused, in place of a loader that gives nothing"
QUIET = "a step takes any number of samples, so a trainer without a data set says nothing"
SHAPES = "a score of any shape with one element is a number"
WEIGHTS = "its numbers are those of the hub's weights: on these models the release has others too, which are ours"
VERSIONS = "it compares versions of PEFT as texts, and so looks at `score.original_module`, which PEFT never trains"
NO_EXAMPLES = "the archive lacks the script that it runs"
PPO, ITERATIVE, DPO = "PPOTrainerTester", "IterativeTrainerTester", "DPOTrainerTester"
EXPECTED = {
    f"{PPO}.test_ppo_step": FREED,
    f"{PPO}.test_ppo_step_with_masks": FREED,
    f"{PPO}.test_ppo_step_with_no_ref": FREED,
    f"{PPO}.test_ppo_step_with_no_ref_custom_layers": FREED,
    f"{PPO}.test_ppo_step_with_no_ref_sgd": FREED,
    f"{PPO}.test_ppo_step_with_no_ref_sgd_lr_scheduler": FREED,
    f"{PPO}.test_ppo_trainer_max_grad_norm": FREED,
    f"{PPO}.test_peft_model_ppo_trainer": FREED,
    f"{PPO}.test_peft_model_ppo_adapter_rm_trainer": FREED,
    f"{PPO}.test_ppo_step_no_dataset": QUIET,
    f"{PPO}.test_ppo_step_rewards_shape": SHAPES,
    f"{PPO}.test_drop_last_dataloader": SMALL,
    f"{PPO}.test_loss_trainer": WEIGHTS,
    "TestPeftDependancy.test_ppo_trainer_no_peft": FREED,
    f"{ITERATIVE}.test_iterative_step_from_tensor_0_gpt2": FREED,
    f"{ITERATIVE}.test_iterative_step_from_tensor_1_gpt2": FREED,
    f"{ITERATIVE}.test_iterative_step_from_tensor_2_t5": FREED,
    f"{ITERATIVE}.test_iterative_step_from_tensor_3_t5": FREED,
    f"{DPO}.test_dpo_trainer_padding_token_is_none": MESSAGE,
    f"{DPO}.test_dpo_trainer_w_dataset_num_proc": MESSAGE,
    "PeftModelTester.test_save_pretrained_peft": FILES,
    "RewardTrainerTester.test_reward_trainer_peft": VERSIONS,
    "test_e2e.test_hello_world": NO_EXAMPLES,
}
"""Tests that fail, and why."""


def archive(folder: Path) -> Path:
    """The folder of the release's tests, from the package registry; a test without one is skipped."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    for command in (
        ["download", "--no-deps", "--no-binary", "trl", "--dest", str(folder), f"trl=={RELEASE}"],
        ["install", "--no-deps", "--target", str(folder / "packages"), "parameterized"],
    ):
        done = subprocess.run([*pip, *command], capture_output=True, text=True, check=False, timeout=HANG)
        if done.returncode:
            pytest.skip(f"no package registry: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    with tarfile.open(folder / f"trl-{RELEASE}.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    return folder / f"trl-{RELEASE}" / "tests"


def outcomes(report: Path) -> dict[str, str]:
    """ "passed", "skipped", "failure" or "error" of each test, by class (or file) and name."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        inside = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"] = (inside or ["passed"])[0]
    return found


@pytest.mark.slow
def test_the_tests_of_the_release_pass_but_for_what_is_decided(tmp_path: Path) -> None:
    """Slow: some 140 tests train and save small models, for more than a minute of one core."""
    tests = archive(tmp_path)
    models, report = tmp_path / "models", tmp_path / "report.xml"
    models.mkdir()
    write_models(models, [path.read_text(encoding="utf-8") for path in sorted(tests.glob("test_*.py"))])
    script = ROOT / "tests" / "port" / "run_old_tests.py"
    command = [sys.executable, "-m", "trl_step.port", "--release", RELEASE, str(script), str(tests)]
    options = ["-q", "--tb=short", "-W", "ignore", f"--ignore={tests / 'slow'}", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, *options, f"--rootdir={tests.parent}"],
        cwd=models,
        env={
            **os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path / "packages"))),
            "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True, text=True, check=False, timeout=3 * HANG,
    )  # fmt: skip
    assert report.exists(), done.stderr[-3000:]
    found = outcomes(report)
    failed = {name for name, outcome in found.items() if outcome in ("failure", "error")}
    assert failed - set(EXPECTED) == set(), done.stdout[-20000:]
    assert set(EXPECTED) - failed == set(), "these pass now: take them out of the list"
    assert sum(outcome == "passed" for outcome in found.values()) >= 100
