"""A `Trainer` that is told to evaluate, but not on what: transformers 5 refuses to make it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl

Report = Callable[[str, str], None]

LIBRARIES = ("transformers", "trl_step")
"""Their trainers have no rows of their own."""


@contextmanager
def evaluation_without_rows(
    make: Callable[..., Any], args: tuple[Any, ...], keywords: Mapping[str, Any], report: Report
) -> Iterator[None]:
    """Around `make(*args, **keywords)`, which makes a Trainer: its settings ask for no evaluation until it is there.

    Afterwards they are as before. A trainer that makes its own batches evaluates. Another one evaluates once it has
    rows; of old, the first evaluation without them was an error.
    """
    given = {**dict(zip(inspect.signature(make).parameters, args, strict=False)), **keywords}
    settings = given.get("args")
    if given.get("eval_dataset") is not None or getattr(settings, "eval_strategy", "no") == "no":
        yield
        return
    asked = settings.eval_strategy
    settings.eval_strategy = type(asked)("no")
    try:
        yield
    finally:
        settings.eval_strategy = asked
    trainer = args[0]
    if not _has_own_rows(type(trainer)):
        report("eval_strategy without eval_dataset", "no evaluation while there is none")
        trainer.add_callback(OnlyWithRows(trainer))


def _has_own_rows(kind: type[Trainer]) -> bool:
    """Whether a class of the script, or of another package, says what is evaluated."""
    makers = (next(base for base in kind.__mro__ if name in vars(base)) for name in ("get_eval_dataloader", "evaluate"))
    return any(maker.__module__.partition(".")[0] not in LIBRARIES for maker in makers)


class OnlyWithRows(TrainerCallback):
    """Leaves out evaluations while its trainer has no `eval_dataset`."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> TrainerControl:
        if self.trainer.eval_dataset is None:
            control.should_evaluate = False
        return control

    on_epoch_end = on_step_end
