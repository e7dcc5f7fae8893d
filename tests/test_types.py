"""What type checkers of a user see of the package: the types of its methods, on a script that lies outside.

The checkers read transformers, PEFT, accelerate and datasets as untyped, as the package's own check does.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trl_step
from tests.limits import HANG
from tests.markdown_pages import ROOT

SCRIPT = """
from typing import Any

import numpy as np
import torch
from trl_step import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
from trl_step.extras import LengthPenalty

tokenizer: Any = None
config = PPOConfig(batch_size=8, log_with=None)
config = PPOConfig(log_with=["tensorboard", "trackio"])
model = AutoModelForCausalLMWithValueHead.from_pretrained("gpt2", device_map="auto")
trainer = PPOTrainer(config, model, None, processing_class=tokenizer)
queries = [torch.tensor([1, 2])]
responses = trainer.generate(queries, return_prompt=False, max_new_tokens=4)
stats = trainer.step(queries, responses, [1.0])
for scores in (torch.ones(1), np.ones(1), LengthPenalty(0.1)(["a"], responses=responses), [torch.ones(2)]):
    trainer.step(queries, responses, scores)
trainer.log_stats(stats, {"query": ["a"], "response": ["b"]}, np.ones(1))
trainer.save_pretrained("x")
steps: int = trainer.load_state("latest")
model.save_pretrained("y")
"""
"""What must be accepted."""
WRONG = [
    "trainer.step(queries)",
    "trainer.step(queries, responses, [1.0], mask=None)",
    "PPOConfig(batch_size='8')",
    "PPOConfig(log_with=1)",
    "PPOConfig(batchsize=8)",
    "trainer.config.batchsize",
    "text: str = trainer.generate(queries)",
    "one: list[Any] = trainer.generate(queries[0])",
    "size: str = config.mini_batch_size",
    "trainer.batched_forward_pass(model, queries)",
    "trainer.train_minibatch(stats)",
]
"""What must be reported."""


def public_callables() -> list[str]:
    """The functions of `trl_step` and the methods of its classes, with their module: `trl_step.PPOTrainer.step`."""
    found = []
    for name in trl_step.__all__:
        value = getattr(trl_step, name)
        found.append(f"trl_step.{name}")
        if inspect.isclass(value):
            own = [each for each in vars(value) if not each.startswith("_") and inspect.isroutine(vars(value)[each])]
            found += [f"trl_step.{name}.{method}" for method in own]
    return found


def write_script(folder: Path) -> tuple[Path, int]:
    """The script, and the number of the last line that must be accepted."""
    path = folder / "users_script.py"
    path.write_text(SCRIPT + "\n".join(WRONG) + "\nimport trl_step\n")
    with path.open("a") as file:
        file.writelines(f"reveal_type({name})\n" for name in public_callables())
    return path, SCRIPT.count("\n")


def compare(reports: list[tuple[int, str, str]], accepted: int) -> None:
    """Reports of a checker: line, kind and text."""
    errors = {line: text for line, kind, text in reports if kind == "error"}
    assert {line: text for line, text in errors.items() if line <= accepted} == {}
    missed = [source for line, source in enumerate(WRONG, start=accepted + 1) if line not in errors]
    assert missed == []
    revealed = [text for line, _, text in reports if line > accepted + len(WRONG)]
    assert len(revealed) >= len(public_callables())
    assert [text for text in revealed if re.search(r'is "(def )?\((\*Any, \*\*Any|\.\.\.)\) ->', text)] == []


@pytest.mark.slow
def test_mypy_sees_the_types_of_every_public_method(tmp_path: Path) -> None:
    """Slow: mypy reads torch, half a minute on an idle core."""
    script, accepted = write_script(tmp_path)
    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\ndisable_error_code = operator, union-attr\nignore_missing_imports = True\nfollow_imports = silent\n"
        "[mypy-transformers.*,peft.*,accelerate.*,datasets.*,wandb.*]\nfollow_imports = skip\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(settings), "--cache-dir", str(tmp_path / "cache"),
         "--no-error-summary", str(script)],
        capture_output=True, text=True, timeout=10 * HANG, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    found = re.findall(r"users_script\.py:(\d+): (error|note): (.*)", done.stdout)
    assert found, done.stdout + done.stderr
    compare([(int(line), kind, text) for line, kind, text in found], accepted)


@pytest.mark.slow
def test_pyright_sees_the_types_of_every_public_method(tmp_path: Path) -> None:
    """Slow: pyright reads torch. basedpyright is pyright with a node of its own."""
    script, accepted = write_script(tmp_path)
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({"include": [script.name], "extraPaths": [str(ROOT)], "typeCheckingMode": "standard"})
    )
    done = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable,
         "--project", str(tmp_path)],
        capture_output=True, text=True, timeout=10 * HANG, cwd=tmp_path,
    )  # fmt: skip
    reports = json.loads(done.stdout)["generalDiagnostics"]
    compare([(each["range"]["start"]["line"] + 1, each["severity"], each["message"]) for each in reports], accepted)
