"""Reports of a run in progress: transformers' callbacks, state and log."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import transformers
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, PrinterCallback, ProgressCallback


@dataclass
class OnlineTrainerState(transformers.TrainerState):
    """`transformers.TrainerState` with `episode`, the answers so far on all processes."""

    episode: int = 0


class Run:
    """Callbacks of a run, and what they are given.

    Args:
        args: `transformers.TrainingArguments`
        callbacks: of the user, beside those that `args` ask for
        is_main: whether this process writes files and logs
        is_local_main: whether it is the first one of its machine
        parts: model, tokenizer, optimizer and scheduler, for the callbacks
    """

    def __init__(
        self, args: Any, callbacks: Optional[list[Any]], is_main: bool, is_local_main: bool, *parts: Any
    ) -> None:
        shown = PrinterCallback if args.disable_tqdm else ProgressCallback
        reporting = get_reporting_integration_callbacks(args.report_to)
        self.args = args
        self.handler = CallbackHandler([DefaultFlowCallback, *reporting, *(callbacks or []), shown], *parts)
        self.control = transformers.TrainerControl()
        self.state = OnlineTrainerState(is_local_process_zero=is_local_main, is_world_process_zero=is_main)

    def begin(self, saved: Optional[Path], steps: int, epochs: float) -> None:
        """Start at 0, or where the state in the file `saved` is; `steps` and `epochs` are those of the whole run."""
        state = self.state
        state.global_step, state.episode, state.epoch, state.log_history = 0, 0, 0.0, []
        if saved is not None:
            found = OnlineTrainerState.load_from_json(str(saved))
            for name in ("global_step", "episode", "epoch", "log_history"):
                setattr(state, name, getattr(found, name))
        state.max_steps, state.num_train_epochs = steps, epochs
        state.compute_steps(self.args, steps)
        self.control.should_training_stop = False

    def call(self, event: str, **more: Any) -> None:
        """Call every callback's method of this name."""
        self.control = self.handler.call_event(event, self.args, self.state, self.control, **more)

    def log(self, logs: dict[str, float]) -> None:
        """Add metrics to the history, and give them to the callbacks."""
        logs = {**logs, "epoch": self.state.epoch}
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control.should_log = False
        self.call("on_log", logs=logs)
