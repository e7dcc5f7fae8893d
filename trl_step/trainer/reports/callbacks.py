"""What runs after every step: functions of a script, a progress bar, a table of samples.

```python
@trainer.on_step
def keep(report):
    rewards.append(report.stats["ppo/mean_scores"])
```
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch

from trl_step.models.notices import described, warn_user
from trl_step.trainer.base import BaseTrainer
from trl_step.trainer.ppo_config import PPOConfig

CELL_CHARACTERS = 400
"""Of a text in a table; the middle of a longer one is left out."""


class StepReport(NamedTuple):
    """What a callback is given, on each process its own."""

    trainer: BaseTrainer
    step: int
    """steps of the run, this one included"""
    stats: dict[str, Any]
    """what `step` is about to return"""
    queries: list[torch.Tensor]
    """token ids, each [Q_i]"""
    responses: list[torch.Tensor]
    """token ids, each [R_i]"""
    scores: torch.Tensor
    """[B] float32, as they were given; of token scores each sample's sum"""


Callback = Callable[[StepReport], Any]


def configured_callbacks(config: PPOConfig) -> list[Callback]:
    """Those that `progress_bar` and `num_sample_generations` of the configuration ask for."""
    callbacks = list[Callback]()
    if config.progress_bar:
        callbacks.append(ProgressBar(config.total_ppo_epochs))
    if config.num_sample_generations:
        callbacks.append(SampleTable(max(config.total_ppo_epochs // config.num_sample_generations, 1)))
    return callbacks


def call_all(callbacks: Iterable[Callback], report: StepReport, failed: set[int]) -> None:
    """Call each with `report`. The step has happened: one that raises cannot undo it, so its error becomes a warning.

    Args:
        failed: `id` of each callback that has warned already; it is called again, but warns no more
    """
    for callback in callbacks:
        try:
            callback(report)
        except Exception as error:
            if id(callback) not in failed:
                failed.add(id(callback))
                name = getattr(callback, "__qualname__", type(callback).__name__)
                warn_user(
                    f"the callback {name} failed after step {report.step}, which is done and stays as it is; this is "
                    f"said once: {described(error)}"
                )


class ProgressBar:
    """A tqdm bar with mean score, KL (nats per response), entropy (nats per token) and tokens per second.

    Only the main process shows it.

    Args:
        total: steps of the whole run
        options: of `tqdm.tqdm`
    """

    def __init__(self, total: int | None = None, **options: Any) -> None:
        self.total = total
        self.options = options
        self._bar: Any = None

    def __call__(self, report: StepReport) -> None:
        if not report.trainer.accelerator.is_main_process:
            return
        from tqdm.auto import tqdm

        if self._bar is None:
            # a run that goes on from a saved state starts in the middle of the bar
            self._bar = tqdm(**{"total": self.total, "initial": report.step - 1, "desc": "PPO"} | self.options)
        self._bar.set_postfix(_vital_numbers(report), refresh=False)
        self._bar.update()
        if self._bar.n == self._bar.total:
            self.close()

    def close(self) -> None:
        """Leave the bar as it is; the next step begins a new one."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _vital_numbers(report: StepReport) -> dict[str, str]:
    stats = report.stats
    shown = {"reward": "ppo/mean_scores", "KL": "objective/kl", "entropy": "ppo/policy/entropy"}
    numbers = {name: f"{stats[key]:.3g}" for name, key in shown.items() if key in stats}
    tokens = sum(map(len, report.queries)) + sum(map(len, report.responses))
    # over the step, on this process; what the script does between two steps does not count
    return numbers | {"tokens/s": f"{tokens / stats['time/ppo/total']:.0f}"}


class SampleTable:
    """A rich table of queries, responses and scores every `every` steps, from the first on, on the main process.

    Args:
        every: steps from one table to the next
        samples: rows of a table, the first ones of the batch
        console: a `rich.console.Console`; None prints to standard output
    """

    def __init__(self, every: int = 1, samples: int = 4, console: Any = None) -> None:
        self.every = every
        self.samples = samples
        self.console = console

    def __call__(self, report: StepReport) -> None:
        if (report.step - 1) % self.every or not report.trainer.accelerator.is_main_process:
            return
        from rich.console import Console
        from rich.table import Column, Table
        from tqdm.auto import tqdm

        columns = [Column(name, overflow="fold") for name in ("query", "response", "score")]
        table = Table(*columns, title=f"step {report.step}", show_lines=True)
        decode = report.trainer.tokenizer.decode
        rows = list(zip(report.queries, report.responses, report.scores.tolist(), strict=True))
        for query, response, score in rows[: self.samples]:
            table.add_row(cell(decode(query)), cell(decode(response)), f"{score:.3f}")
        with tqdm.external_write_mode():  # a progress bar steps aside
            (self.console or Console()).print(table)


def cell(text: str) -> Any:
    """Text of a model as it is: no markup in it takes effect, and no control character of a terminal."""
    from rich.text import Text

    if len(text) > CELL_CHARACTERS:
        text = f"{text[: CELL_CHARACTERS // 2]} … {text[-CELL_CHARACTERS // 2 :]}"
    return Text("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
