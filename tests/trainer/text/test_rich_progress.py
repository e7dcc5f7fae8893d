"""rich's bars of a `transformers.Trainer`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from tests import tiny
from trl_step import RichProgressCallback
from trl_step.trainer import callbacks


def trainer(folder: Path) -> Trainer:
    rows = Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]} for _ in range(4)])
    arguments = TrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=2, logging_steps=1,
        report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", per_device_eval_batch_size=2,
    )  # fmt: skip
    shown = RichProgressCallback()
    return Trainer(tiny.gpt2(), arguments, train_dataset=rows, eval_dataset=rows, callbacks=[shown])


def test_steps_and_numbers_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert callbacks.RichProgressCallback is RichProgressCallback
    trainer(tmp_path).train()
    shown = capsys.readouterr().out
    assert "training" in shown
    assert "2/2" in shown
    assert re.search(r"step 1: loss \d\.\d+, grad_norm ", shown)


def test_an_evaluation_has_a_bar_of_its_own_for_as_long_as_it_takes(tmp_path: Path) -> None:
    bars: list[list[tuple[str, float, float | None]]] = []

    class Watched(RichProgressCallback):
        def on_prediction_step(self, *args: object, **kwargs: object) -> None:
            super().on_prediction_step(*args, **kwargs)  # type: ignore[arg-type]
            if self._progress is not None:
                bars.append([(task.description, task.completed, task.total) for task in self._progress.tasks])

        def on_evaluate(self, *args: object, **kwargs: object) -> None:
            super().on_evaluate(*args, **kwargs)  # type: ignore[arg-type]
            if self._progress is not None:
                bars.append([(task.description, task.completed, task.total) for task in self._progress.tasks])

    run = trainer(tmp_path)
    run.remove_callback(RichProgressCallback)
    run.add_callback(Watched)
    run.train()
    training = ("training", 2, 2)
    assert bars == [[training, ("evaluation", 1, 2)], [training, ("evaluation", 2, 2)], [training]]
    run.evaluate()  # without a training there is no bar
    assert len(bars) == 3


def test_without_rich(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    with pytest.raises(ImportError, match="pip install rich"):
        trainer(tmp_path).train()
