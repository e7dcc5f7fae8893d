"""`RichProgressCallback`: progress of a `transformers.Trainer` as rich shows it."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class RichProgressCallback(TrainerCallback):
    """Shows a bar for the steps of a run, another for an evaluation, and above them a line of numbers for each log.

    Only the first of several processes shows something.

    Raises:
        ImportError: rich is missing, when the training begins.
    """

    def __init__(self) -> None:
        self._progress: Any = None
        self._steps: Any = None
        self._evaluation: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise ImportError("RichProgressCallback needs rich: pip install rich") from error

        if state.is_world_process_zero:
            name = TextColumn("{task.description}")
            self._progress = Progress(name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._progress.start()
            self._steps = self._progress.add_task("training", total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.update(self._steps, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._progress is not None and logs:
            numbers = {name: value for name, value in logs.items() if isinstance(value, (int, float))}
            words = [f"{name} {value:.4g}" for name, value in numbers.items() if name != "total_flos"]
            self._progress.console.print(f"step {state.global_step}: {', '.join(words)}", highlight=False)

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self._progress is None:
            return
        if self._evaluation is None:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self._evaluation = self._progress.add_task("evaluation", total=total)
        self._progress.advance(self._evaluation)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._evaluation is not None:
            self._progress.remove_task(self._evaluation)
            self._evaluation = None

    on_predict = on_evaluate

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
