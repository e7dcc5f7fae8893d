"""What runs after every step: functions, the progress bar, the table of samples."""

from __future__ import annotations

import io
import re
import warnings
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.tiny import batch, config, trainer, weights
from trl_step.trainer.reports.callbacks import ProgressBar, SampleTable, StepReport


def test_a_callback_sees_every_step() -> None:
    ours = trainer("gpt2")
    seen: list[StepReport] = []
    assert ours.on_step(seen.append) == seen.append
    queries, responses, scores = batch()
    returned = [ours.step(queries, responses, scores), ours.step(queries, responses, scores)]
    assert [report.step for report in seen] == [1, 2]
    assert seen[1].trainer is ours
    assert seen[1].stats is returned[1]
    assert [r.tolist() for r in seen[0].responses] == [r.tolist() for r in responses]
    assert [q.tolist() for q in seen[0].queries] == [q.tolist() for q in queries]
    assert seen[0].scores.tolist() == pytest.approx(scores)


def test_the_scores_are_those_that_were_given() -> None:
    ours, seen = trainer("gpt2", score_clip=0.1), list[StepReport]()
    ours.on_step(seen.append)
    queries, responses, _ = batch()
    ours.step(queries, responses, [5.0] * 8)
    assert seen[0].scores.tolist() == [5.0] * 8


def test_the_scores_of_tokens_are_added_up() -> None:
    ours, seen = trainer("gpt2"), list[StepReport]()
    ours.on_step(seen.append)
    queries, responses, scores = batch()
    vector = torch.arange(float(len(responses[1])))
    ours.step(queries, responses, [scores[0], vector, *scores[2:]])
    expected = [scores[0], float(vector.sum()), *scores[2:]]
    assert seen[0].scores.tolist() == pytest.approx(expected)


def test_a_table_of_samples_with_scores_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    ours = trainer("gpt2", num_sample_generations=1, steps=8)
    queries, responses, scores = batch()
    vector = torch.full((len(responses[1]),), 2.0)
    ours.step(queries, responses, [scores[0], vector, *scores[2:]])
    assert f"{2.0 * len(vector):.3f}" in capsys.readouterr().out


def test_what_a_callback_raises_is_a_warning_as_the_step_is_done() -> None:
    ours, later = trainer("gpt2"), list[int]()

    @ours.on_step
    def broken(report: StepReport) -> None:
        raise ZeroDivisionError(f"in step {report.step}")

    ours.on_step(lambda report: later.append(report.step))
    before = weights(ours.model)
    with pytest.warns(UserWarning, match=r"callback .*broken failed after step 1, .*ZeroDivisionError: in step 1"):
        stats = ours.step(*batch())
    assert stats["ppo/policy/skipped"] == 0
    assert any(not torch.equal(before[name], value) for name, value in weights(ours.model).items())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours.step(*batch())
    assert not [warning for warning in caught if "callback" in str(warning.message)], "it is said once"
    assert (ours.steps_done, later) == (2, [1, 2])


def test_an_interrupt_in_a_callback_passes() -> None:
    ours = trainer("gpt2")

    @ours.on_step
    def stop(report: StepReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.step(*batch())
    assert ours.steps_done == 1


def test_the_progress_bar_shows_the_numbers_of_the_step() -> None:
    ours, screen = trainer("gpt2"), io.StringIO()
    bar = ProgressBar(total=3, file=screen, mininterval=0, ncols=150)
    ours.on_step(bar)
    stats: dict[str, Any] = {}
    for _ in range(2):
        stats = ours.step(*batch())
    last = screen.getvalue().split("\r")[-1]
    assert "2/3" in last
    tokens = sum(len(q) + len(r) for q, r in zip(*batch()[:2], strict=True))
    numbers = [float(n) for n in re.search(r"reward=(\S+), KL=(\S+), entropy=(\S+), tokens/s=(\d+)", last).groups()]
    expected = [stats["ppo/mean_scores"], stats["objective/kl"], stats["ppo/policy/entropy"]]
    assert numbers[:3] == pytest.approx(expected, rel=0.01)
    assert numbers[3] == pytest.approx(tokens / stats["time/ppo/total"], rel=0.01, abs=1)
    ours.step(*batch())
    assert screen.getvalue().endswith("\n"), "closed at the end of the run"


def test_the_table_of_samples_comes_every_so_many_steps_and_obeys_no_markup() -> None:
    screen = io.StringIO()
    ours = trainer("gpt2")
    ours.on_step(SampleTable(every=2, samples=2, console=Console(file=screen, width=160)))
    texts = iter(["[red]query[/red]", "a\x1b[2Jb", "second", "x" * 1000])
    ours.tokenizer.decode = lambda ids: next(texts, "more")
    for _ in range(3):
        ours.step(*batch())
    shown = screen.getvalue()
    assert re.findall(r"step (\d)", shown) == ["1", "3"]
    assert "[red]query[/red]" in shown
    assert "a\\x1b[2Jb" in shown
    assert "\x1b" not in shown
    assert 390 <= shown.count("x") <= 410, "the middle of a long text is left out"
    for score in batch()[2][:2]:
        assert shown.count(f"{score:.3f}") == 2
    assert shown.count("more") == 4


@pytest.mark.parametrize(
    ("steps", "tables", "behind"), [(4, 2, "13"), (5, 2, "135"), (5, 1, "1"), (3, 9, "123")], ids=str
)
def test_the_configuration_asks_for_both(
    steps: int, tables: int, behind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = trainer("gpt2", progress_bar=True, num_sample_generations=tables, steps=8 * steps, ppo_epochs=1)
    for _ in range(steps):
        ours.step(*batch())
    printed = capsys.readouterr()
    assert re.findall(r"step (\d)", printed.out) == list(behind)
    assert f"{steps}/{steps}" in printed.err
    assert "entropy=" in printed.err


def test_without_being_asked_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    trainer("gpt2").step(*batch())
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trl_step.trainer.ppo_config.is_rich_available", lambda: False)
    config()
    with pytest.raises(ImportError, match="num_sample_generations=3 needs the package rich: pip install rich"):
        config(num_sample_generations=3)
    with pytest.raises(ValueError, match="num_sample_generations=-1 must be a finite number >= 0"):
        config(num_sample_generations=-1)
