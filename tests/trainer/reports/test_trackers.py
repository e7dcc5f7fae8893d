"""What `log_stats` writes: read back from tensorboard files and from an offline run of wandb."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import batch, trainer
from tests.trainer.reports.wandb_file import CHUNK_HEADER, FILE_HEADER, FULL, history, records, settings
from trl_step.algorithms.stats import LOGGED_BY_LOG_STATS, PER_TOKEN, STATS, explain

COLUMNS = {"query": [f"q{i}" for i in range(8)], "response": [f"r{i}" for i in range(8)], "length": list(range(8))}


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (run,) = {path.parent for path in folder.rglob("events.out.tfevents.*")} - {
        path.parent for path in folder.rglob("events.out.tfevents.*") if path.parent.name[:1].isdigit()
    }
    read = EventAccumulator(str(run), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    read.Reload()
    return read


@pytest.fixture
def with_tensorboard(tmp_path: Path) -> tuple[Any, Path]:
    ours = trainer("gpt2", log_with="tensorboard", project_kwargs={"logging_dir": str(tmp_path)})
    return ours, tmp_path


def test_tensorboard_scalars_are_those_of_the_steps(with_tensorboard: tuple[Any, Path]) -> None:
    ours, folder = with_tensorboard
    logged = []
    for step in range(3):
        queries, responses, scores = batch(seed=step)
        logged.append(ours.step(queries, responses, scores) | {"env/reward_mean": sum(scores) / 8})
        ours.log_stats(logged[-1], COLUMNS, [torch.tensor(score) for score in scores])
    ours.accelerator.end_training()
    read = events(folder)
    assert ours.current_step == 3
    for key in [key for key, value in logged[0].items() if isinstance(value, float)]:
        values = read.Scalars(key)
        assert [event.step for event in values] == [1, 2, 3], key
        assert [event.value for event in values] == pytest.approx([stats[key] for stats in logged], rel=1e-5), key
    rewards = torch.tensor(batch(seed=2)[2])
    assert read.Scalars("env/reward_std")[2].value == pytest.approx(float(rewards.std()), rel=1e-5)
    distribution = read.Histograms("env/reward_dist")[2].histogram_value
    assert distribution.num == 8
    assert distribution.sum == pytest.approx(float(rewards.sum()), rel=1e-4)


def test_tensorboard_has_the_settings_and_a_table_of_any_columns(with_tensorboard: tuple[Any, Path]) -> None:
    ours, folder = with_tensorboard
    columns = {**COLUMNS, "response": ["a | b\nc", *COLUMNS["response"][1:]]}
    ours.log_stats({}, columns, [1.5] * 8, columns_to_log=("length", "response"))
    ours.accelerator.end_training()
    (table,) = events(folder).Tensors("game_log/text_summary")
    lines = table.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| length | response | reward |"
    assert lines[2] == "| 0 | a \\| b c | 1.500 |"
    assert len(lines) == 10
    settings = next(folder.rglob("hparams.yml")).read_text()
    assert "learning_rate: 0.001" in settings


@pytest.mark.parametrize("kind", ["tensors", "numbers", "vector", "column"])
def test_rewards_of_every_kind(kind: str, with_tensorboard: tuple[Any, Path]) -> None:
    ours, folder = with_tensorboard
    numbers = [0.5 * i for i in range(8)]
    rewards: Any = {
        "tensors": [torch.tensor(x) for x in numbers],
        "numbers": numbers,
        "vector": torch.tensor(numbers),
        "column": [torch.tensor([x], dtype=torch.bfloat16) for x in numbers],
    }[kind]
    ours.log_stats({"bf16": torch.tensor(1.5, dtype=torch.bfloat16)}, COLUMNS, rewards)
    ours.accelerator.end_training()
    assert events(folder).Scalars("env/reward_mean")[0].value == pytest.approx(1.75)


def test_wrong_columns_are_named(with_tensorboard: tuple[Any, Path]) -> None:
    ours, _ = with_tensorboard
    with pytest.raises(ValueError, match=r"columns \['origin'\] are not in the batch, which has \['length', 'query'"):
        ours.log_stats({}, COLUMNS, [0.0] * 8, columns_to_log=["query", "origin"])
    with pytest.raises(ValueError, match=r"column 'query' has 8 entries, but there are 7 rewards"):
        ours.log_stats({}, COLUMNS, [0.0] * 7)
    with pytest.warns(UserWarning, match=r"none of the columns \['query', 'response'\]"):
        ours.log_stats({}, {"text": ["t"] * 8}, [0.0] * 8)
    ours.accelerator.end_training()


def test_without_a_tracker_nothing_is_needed() -> None:
    ours = trainer("gpt2")
    ours.log_stats({}, {}, [0.0] * 8)
    assert ours.current_step == 1


@pytest.fixture
def offline_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_wandb_and_tensorboard_at_once_hold_the_same(tmp_path: Path, offline_wandb: None) -> None:
    ours = trainer(
        "gpt2",
        log_with=["wandb", "tensorboard"],
        tracker_kwargs={"wandb": {"dir": str(tmp_path / "wandb"), "name": "mine"}},
        project_kwargs={"logging_dir": str(tmp_path / "tensorboard")},
        log_arrays=True,
    )
    logged = []
    for step in range(2):
        queries, responses, scores = batch(seed=step)
        logged.append(ours.step(queries, responses, scores))
        ours.log_stats(logged[-1], COLUMNS, scores, columns_to_log=["query", "response", "length"])
    ours.accelerator.end_training()
    rows, board = history(tmp_path / "wandb"), events(tmp_path / "tensorboard")
    assert len(rows) == 2
    for key in [key for key, value in logged[0].items() if isinstance(value, float)]:
        assert [row[key] for row in rows] == pytest.approx([stats[key] for stats in logged], rel=1e-6), key
        assert [event.value for event in board.Scalars(key)] == pytest.approx([row[key] for row in rows], rel=1e-5)
    assert rows[1]["env/reward_mean"] == pytest.approx(sum(batch(seed=1)[2]) / 8)
    for key in PER_TOKEN:
        count = logged[1][key].numel()
        assert sum(rows[1][f"{key}/values"]) == board.Histograms(key)[1].histogram_value.num == count, key
    table = json.loads(
        (next(tmp_path.rglob("media")) / Path(rows[1]["game_log/path"]).relative_to("media")).read_text()
    )
    assert table["columns"] == ["query", "response", "length", "reward"]
    assert table["data"][3] == ["q3", "r3", 3, pytest.approx(scores[3])]
    text = board.Tensors("game_log/text_summary")[1].tensor_proto.string_val[0].decode().splitlines()
    assert text[5] == f"| q3 | r3 | 3 | {scores[3]:.3f} |"
    assert settings(tmp_path / "wandb")["trl_ppo_trainer_config"]["learning_rate"] == 1e-3
    assert "learning_rate: 0.001" in next(tmp_path.rglob("hparams.yml")).read_text()


def test_a_run_that_is_still_written_is_read_up_to_its_last_whole_message(tmp_path: Path) -> None:
    """wandb's process writes in its own time: the end of a file may lie inside a message."""
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    messages = [Record(num=n, uuid="x" * 40) for n in range(3)]
    chunks = [CHUNK_HEADER.pack(0, message.ByteSize(), FULL) + message.SerializeToString() for message in messages]
    whole = bytes(FILE_HEADER) + b"".join(chunks)
    for length in range(FILE_HEADER, len(whole) + 1):
        (tmp_path / "run.wandb").write_bytes(whole[:length])
        complete = sum(FILE_HEADER + sum(map(len, chunks[: n + 1])) <= length for n in range(3))
        assert list(records(tmp_path / "run.wandb")) == messages[:complete], length


def test_values_per_token_are_returned_as_tensors_and_logged_on_request_only(
    tmp_path: Path, offline_wandb: None
) -> None:
    ours = trainer("gpt2", log_with="wandb", tracker_kwargs={"wandb": {"dir": str(tmp_path)}})
    stats = ours.step(*batch())
    ours.log_stats(stats, COLUMNS, batch()[2])
    ours.accelerator.end_training()
    (row,) = history(tmp_path)
    assert "objective/kl_dist" in row
    for key in PER_TOKEN:
        assert isinstance(stats[key], torch.Tensor)
        assert not [name for name in row if name == key or name.startswith(f"{key}/")]
    # what scripts of release 0.7 do with them
    logprobs, ref_logprobs = stats["objective/logprobs"], stats["objective/ref_logprobs"]
    np.testing.assert_allclose((np.asarray(logprobs) - np.asarray(ref_logprobs)).sum(-1), stats["objective/kl_dist"])


def test_the_keys_are_explained_from_the_one_table(with_tensorboard: tuple[Any, Path]) -> None:
    ours, folder = with_tensorboard
    ours.accelerator.end_training()
    (written,) = events(folder).Tensors("keys/text_summary")
    lines = written.tensor_proto.string_val[0].decode().splitlines()
    assert len(lines) == 2 + len(STATS) + len(LOGGED_BY_LOG_STATS)
    assert "| ppo/learning_rate | learning rate that this step used |" in lines
    assert explain("env/reward_dist") == "the rewards of all processes"
    with pytest.raises(KeyError, match="mine"):
        explain("mine")


def test_a_tracker_of_ones_own_gets_the_numbers() -> None:
    """accelerate takes any tracker; it gets scalars only, with the step."""

    class Tracker:
        name = "mine"

        def __init__(self) -> None:
            self.seen: list[Any] = []

        def log(self, values: dict[str, Any], **kwargs: Any) -> None:
            self.seen.append((values, kwargs))

    ours, tracker = trainer("gpt2"), Tracker()
    ours.accelerator.trackers = [tracker]
    ours.log_stats({"loss": 1.0, "matrix": torch.zeros(3, 3)}, {}, [2.0] * 4)
    ((values, kwargs),) = tracker.seen
    assert values == {"loss": 1.0, "env/reward_mean": 2.0, "env/reward_std": 0.0}
    assert kwargs == {"step": 1}


class Dead:
    """A tracker whose server is down."""

    def __init__(self, name: str, alive: bool = False) -> None:
        self.name, self.alive, self.logged = name, alive, list[Any]()

    def log(self, values: dict[str, Any], **_: Any) -> None:
        if not self.alive:
            raise ConnectionError("no route to host")
        self.logged.append(values)


def test_a_dead_tracker_is_told_once_and_the_others_are_written(tmp_path: Path) -> None:
    ours = trainer("gpt2")
    dead, other, alive = Dead("wandb"), Dead("aim"), Dead("mlflow", alive=True)
    ours.accelerator.trackers = [dead, other, alive]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for seed in range(2):
            queries, responses, scores = batch(seed=seed)
            stats = ours.step(queries, responses, scores)
            ours.log_stats(stats, COLUMNS, scores)
    told = [str(warning.message) for warning in caught if "could not be logged" in str(warning.message)]
    assert [message.split()[7].strip(",") for message in told] == ["wandb", "aim"]
    assert all("ConnectionError: no route to host" in message for message in told)
    assert len(alive.logged) == 2


def test_a_step_whose_log_was_lost_keeps_its_number(tmp_path: Path) -> None:
    """An automatic save stands at the end of `step`, in front of the log."""
    ours = trainer("gpt2", save_every=2, save_dir=str(tmp_path))
    for _ in range(2):
        stats = ours.step(*batch())
        ours.log_stats(stats, COLUMNS, batch()[2])
    again = trainer("gpt2", save_dir=str(tmp_path))
    again.load_state("latest")
    again.log_stats(again.step(*batch()), COLUMNS, batch()[2])
    assert again.current_step == 3


def test_tensorboard_without_a_folder_says_where_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="the logs go to the folder runs/"):
        ours = trainer("gpt2", log_with="tensorboard")
    queries, responses, scores = batch()
    stats = ours.step(queries, responses, scores)
    ours.log_stats(stats, {"query": ["a"] * 8, "response": ["b"] * 8}, scores)
    assert list((tmp_path / "runs").rglob("events.out.tfevents.*"))
