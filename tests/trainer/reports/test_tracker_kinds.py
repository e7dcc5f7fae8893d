"""What each tracker of accelerate gets of a step: numbers, histograms, the table of samples, the settings."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args
from unittest.mock import Mock

import numpy as np
import pytest
from accelerate import tracking

from tests.tiny import batch, trainer
from trl_step.import_utils import TrackerName
from trl_step.trainer.reports.tracker_kinds import Table, write

COLUMNS = {"query": [f"q{i}" for i in range(8)], "response": ["a | b\nc", *(f"r{i}" for i in range(1, 8))]}
LOGS = {"loss": 1.5, "dist": np.array([0.0, 1.0, np.nan, 1.0])}
TABLE = Table(["query", "reward"], [("a | b", 0.25), ("c", 1.0)])
MARKDOWN = "| query | reward |\n| --- | --- |\n| a \\| b | 0.250 |\n| c | 1.000 |"
ROWS = [["a | b", 0.25], ["c", 1.0]]


def test_the_names_are_those_of_accelerate() -> None:
    assert set(get_args(TrackerName)) == {str(name) for name in tracking.LOGGER_TYPE_TO_CLASS}


def test_trackio_holds_numbers_histograms_tables_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("trackio")
    own = {"trackio": {"name": "mine", "auto_log_cpu": False, "embed": False}}
    ours = trainer("gpt2", log_with="trackio", tracker_project_name="films", tracker_kwargs=own)
    steps = []
    for seed in range(2):
        queries, responses, scores = batch(seed=seed)
        steps.append(ours.step(queries, responses, scores))
        ours.log_stats(steps[-1], COLUMNS, scores)
    ours.accelerator.end_training()
    with sqlite3.connect(tmp_path / "films.db") as base:
        rows = base.execute("select run_name, step, metrics from metrics order by step").fetchall()
        ((settings,),) = base.execute("select config from configs").fetchall()
    assert [row[:2] for row in rows] == [("mine", 1), ("mine", 2)]
    for stats, values in zip(steps, (json.loads(row[2]) for row in rows), strict=True):
        for key, value in stats.items():
            assert not isinstance(value, float) or values[key] == pytest.approx(value, nan_ok=True), key
        assert sum(values["env/reward_dist"]["values"]) == sum(values["objective/kl_dist"]["values"]) == 8
        assert "objective/logprobs" not in values
    samples = json.loads(rows[1][2])["game_log"]["_value"]
    assert samples[0] == {"query": "q0", "response": "a | b\nc", "reward": pytest.approx(scores[0])}
    assert json.loads(settings)["trl_ppo_trainer_config"]["learning_rate"] == 1e-3


def test_comet_gets_histograms_and_a_table_per_step() -> None:
    tracker = Mock(name="tracker")
    tracker.name = "comet_ml"
    assert write(tracker, LOGS, TABLE, 7) == []
    tracker.log.assert_called_once_with({"loss": 1.5}, step=7)
    ((values,), said) = tracker.writer.log_histogram_3d.call_args
    assert (values.tolist(), said) == ([0.0, 1.0, 1.0], {"name": "dist", "step": 7})
    tracker.writer.log_table.assert_called_once_with("game_log_000007.csv", ROWS, headers=["query", "reward"])


def test_aim_gets_distributions_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aim", SimpleNamespace(Distribution=lambda x: x.tolist(), Text=str))
    tracker = Mock()
    tracker.name = "aim"
    assert write(tracker, LOGS, TABLE, 7) == []
    tracker.log.assert_called_once_with({"loss": 1.5}, step=7)
    histogram, samples = tracker.writer.track.call_args_list
    assert histogram == (([0.0, 1.0, 1.0],), {"name": "dist", "step": 7})
    assert samples == ((MARKDOWN,), {"name": "game_log", "step": 7})


def test_clearml_gets_counts_and_a_table() -> None:
    tracker = Mock()
    tracker.name = "clearml"
    assert write(tracker, LOGS, TABLE, 7) == []
    said = tracker.task.get_logger().report_histogram.call_args.kwargs
    assert (said["title"], said["iteration"]) == ("dist", 7)
    assert said["values"] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (said["xlabels"][0], said["xlabels"][-1]) == ("0.05", "0.95")
    tracker.log_table.assert_called_once_with("game_log", columns=["query", "reward"], data=ROWS, step=7)


def test_swanlab_gets_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    charts = Mock()
    monkeypatch.setitem(sys.modules, "swanlab", SimpleNamespace(echarts=charts))
    tracker = Mock()
    tracker.name = "swanlab"
    assert write(tracker, LOGS, TABLE, 7) == []
    bar, table = charts.Bar(), charts.Table()
    bar.add_xaxis.return_value.add_yaxis.assert_called_once_with("dist", [1, 0, 0, 0, 0, 0, 0, 0, 0, 2])
    table.add.assert_called_once_with(["query", "reward"], ROWS)
    assert [call.args[0].keys() for call in tracker.log.call_args_list] == [{"loss"}, {"dist"}, {"game_log"}]
    assert all(call.kwargs == {"step": 7} for call in tracker.log.call_args_list)


def test_mlflow_gets_texts_and_says_what_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = Mock()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    tracker = Mock()
    tracker.name = "mlflow"
    tracker.active_run.info.run_id = "the run"
    assert write(tracker, LOGS, TABLE, 7) == ["dist"]
    mlflow.log_text.assert_called_once_with(MARKDOWN, "game_log/000007.md", run_id="the run")


def test_what_is_neither_a_number_nor_an_array_is_named() -> None:
    tracker = Mock()
    tracker.name = "tensorboard"
    logs = {"loss": 1.5, "note": "warm", "list": [1, 2], "nothing": None}
    assert write(tracker, logs, None, 7) == ["note", "list", "nothing"]
    tracker.log.assert_called_once_with({"loss": 1.5}, step=7)


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    ours = trainer("gpt2", log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})
    (tracker,) = ours.accelerator.trackers
    tracker.log = Mock()
    ours.log_stats({"loss": np.float32(0.5), "count": np.int64(3)}, COLUMNS, [0.5] * 8)
    logged = tracker.log.call_args.args[0]
    assert (logged["loss"], logged["count"]) == (0.5, 3)


class Own(tracking.GeneralTracker):
    """As somebody who registers a tracker with accelerate writes it."""

    name = "own"
    requires_logging_directory = False
    opened: list[Own] = []  # noqa: RUF012

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        self.run_name, self.options, self.settings, self.logged = run_name, options, {}, []
        self.opened.append(self)

    @property
    def tracker(self) -> Any:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings |= values

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))


def test_a_registered_tracker_is_taken_by_name_and_its_gaps_are_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "own", Own)
    ours = trainer("gpt2", log_with="own", tracker_project_name="films", tracker_kwargs={"own": {"color": "red"}})
    (own,) = Own.opened
    assert (own.run_name, own.options) == ("films", {"color": "red"})
    assert own.settings["trl_ppo_trainer_config"]["learning_rate"] == 1e-3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            ours.log_stats({"loss": 1.0, "dist": np.zeros(3)}, COLUMNS, [0.5] * 8)
        ours.log_stats({"loss": 1.0, "later": np.zeros(3)}, COLUMNS, [0.5] * 8)
    assert own.logged[1] == (2, {"loss": 1.0, "env/reward_mean": 0.5, "env/reward_std": 0.0})
    told, later = [str(warning.message) for warning in caught if "no place" in str(warning.message)]
    assert told.startswith("own has no place for dist, env/reward_dist, game_log, so they are not logged to it")
    assert later.startswith("own has no place for later, so they are not logged to it")


class Named(Own):
    """Draws the name of the run, as mlflow and swanlab do."""

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__(run_name, **options)
        self.drawn = random.random()


def test_a_name_that_a_tracker_draws_depends_on_no_seed_and_moves_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "opened", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "own", Named)
    trainer("gpt2", seed=5)
    expected = random.random()
    for _ in range(2):
        trainer("gpt2", seed=5, log_with="own")
        assert random.random() == expected
    first, second = (tracker.drawn for tracker in Own.opened)
    assert first != second


def test_settings_without_levels_for_trackers_that_take_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlflow drops a value of more than some thousand characters, as all settings in one would be."""
    monkeypatch.setattr(Own, "name", "mlflow")
    monkeypatch.setattr(Own, "opened", [])
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(__spec__=object()))
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [*tracking.LoggerType])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", Own)
    trainer("gpt2", log_with="mlflow")
    (own,) = Own.opened
    assert own.settings["learning_rate"] == 1e-3


def test_a_tracker_that_accelerate_has_not_seen_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an installation in a running notebook; accelerate drops it without a word."""
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(ImportError, match=r"accelerate did not open tensorboard.*start Python anew"):
        trainer("gpt2", log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})
