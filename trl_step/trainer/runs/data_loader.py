"""A data loader whose position can be saved and set.

Through accelerate's `use_stateful_dataloader`, torchdata 0.11 goes on with a shuffled pass in another order, and
fetches each batch one ahead. By itself it keeps the order, but draws from torch's stream to go on, so that a data set
that draws numbers draws others; with a generator of the script's own the next pass has another order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import send_to_device, synchronize_rng_states

from trl_step.trainer.runs import random_streams


def positioned(prepared: Any, non_blocking: bool = False) -> Any:
    """What `accelerator.prepare` made of a loader, with a position; anything else, None included, as it is.

    Args:
        prepared: the loader
        non_blocking: of the accelerator; whether the host goes on while a batch is copied to the device
    """
    return PositionedLoader(prepared, non_blocking) if type(prepared) is DataLoaderShard else prepared


@dataclass
class _Pass:
    """A pass over the data that has begun."""

    start: dict[str, Any]
    """the random streams before it, from which the order of its samples follows"""
    given: int = 0
    """batches handed out"""


class PositionedLoader(DataLoaderShard):
    """A prepared loader whose position can be saved and set.

    Batches come in the order of the prepared loader. Each is fetched when it is asked for, not one ahead, so that a
    data set or collator that draws random numbers draws the same ones in a run that was resumed.
    """

    def __init__(self, prepared: DataLoaderShard, non_blocking: bool = False) -> None:
        self.__dict__.update(prepared.__dict__)
        self.non_blocking = non_blocking
        self._current: _Pass | None = None
        self._resumed: _Pass | None = None

    def state_dict(self) -> dict[str, Any]:
        """The position: a tree of numbers and tensors."""
        here = self._resumed or self._current
        return {
            "iteration": self.iteration,
            "given": None if here is None else here.given,
            "start": self._streams() if here is None else here.start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next pass be the rest of the one that had begun, or, between two passes, a whole one."""
        self.iteration, given, start = (state_dict[key] for key in ("iteration", "given", "start"))
        self._current, self._resumed = None, None if given is None else _Pass(start, given)
        self._set_generator(start)

    def __iter__(self) -> Iterator[Any]:
        here, self._resumed = self._resumed, None
        if self.rng_types:
            synchronize_rng_states(self.rng_types, self.synchronized_generator)
        self.set_epoch(self.iteration)
        batches: Iterable[Any] = self.base_dataloader
        if here is None:
            here = _Pass(self._streams())
        else:
            batches = self._rest_of(here)
        self._current = here
        try:
            for batch in batches:
                here.given += 1
                yield batch if self.device is None else send_to_device(batch, self.device, self.non_blocking)
            self.iteration += 1
        finally:  # also if the loop is left early: the next one is a new pass
            if self._current is here:
                self._current = None

    def _rest_of(self, here: _Pass) -> Iterable[Any]:
        """The batches that a pass has not handed out, in its order; the random streams stay where they are now."""
        now = random_streams.capture()
        random_streams.restore(here.start["streams"])
        if isinstance(self.dataset, torch.utils.data.IterableDataset):
            batches = iter(self.base_dataloader)
            for _ in range(here.given):
                next(batches)
            random_streams.restore(now)
            return batches
        rest: Any = skip_first_batches(self, 0).base_dataloader
        skipping = rest.batch_sampler  # accelerate's own, around the one that the loader had
        skipping.batch_sampler = _Rest(skipping.batch_sampler, here.given, lambda: random_streams.restore(now))
        return rest  # type: ignore[no-any-return]

    def _streams(self) -> dict[str, Any]:
        generator = self._generator()
        own = None if generator is None else generator.get_state()
        return {"streams": random_streams.capture(), "generator": own}

    def _set_generator(self, start: dict[str, Any]) -> None:
        generator = self._generator()
        if generator is not None and start["generator"] is not None:
            generator.set_state(start["generator"])

    def _generator(self) -> torch.Generator | None:
        """The sampler's own: on several processes, or if a script gave the loader one."""
        generator: torch.Generator | None = self.synchronized_generator
        return generator or getattr(self.get_sampler(), "generator", None)


class _Rest:
    """The batches of indices after the first `skip`; `then` is called once those are drawn."""

    def __init__(self, batches: Iterable[Any], skip: int, then: Callable[[], None]) -> None:
        self.batches, self.skip, self.then = batches, skip, then

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.batches)
        for _ in range(self.skip):
            next(batches)
        self.then()
        yield from batches
