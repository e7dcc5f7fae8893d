"""A scheduler of another optimizer than the trainer's, which had no effect of old and is an error here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trl_step.replacing import replaced
from trl_step.trainer.ppo_trainer import PPOTrainer


@contextmanager
def old_schedulers(report: Callable[[str, str], None]) -> Iterator[None]:
    """Inside, `PPOTrainer` takes such a scheduler; the learning rate stays what it is, which is reported."""
    make = PPOTrainer.__init__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def init(trainer: Any, *args: Any, **keywords: Any) -> None:
        given = signature.bind_partial(trainer, *args, **keywords)
        scheduler, optimizer = (given.arguments.get(name) for name in ("lr_scheduler", "optimizer"))
        scheduled = getattr(scheduler, "optimizer", None)
        if scheduled is None or _inner(scheduled) is _inner(optimizer):
            make(trainer, *args, **keywords)
            return
        report("lr_scheduler of another optimizer", "a learning rate that stays; pass its optimizer to let it change")
        given.arguments["lr_scheduler"] = None
        make(*given.args, **given.kwargs)
        trainer.lr_scheduler = scheduler

    with replaced(PPOTrainer, "__init__", init):
        yield


def _inner(optimizer: Any) -> Any:
    """torch's own of an optimizer that accelerate has prepared."""
    return getattr(optimizer, "optimizer", optimizer)
