"""The trainer's policy, as samplers elsewhere need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from trl_step.models.inner_model import is_peft_model, plain_model
from trl_step.models.merged_weights import merged_weights
from trl_step.models.sharding import gathered, is_sharded
from trl_step.sampling.sampler import Weights
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.runs.counters import Counters


class PolicyWeights(Weights):
    """See `Weights`.

    Args:
        policy: returns the value-head wrapper, without parallel wrappers.
        processes: of the run.
        counters: of the run.
    """

    def __init__(self, policy: Callable[[], Any], processes: Processes, counters: Counters) -> None:
        self._policy = policy
        self._processes = processes
        self._counters = counters

    @property
    def version(self) -> int:
        """See `Weights.version`."""
        return self._counters.steps_done

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `Weights.tensors`."""
        policy = self._policy()
        with gathered(policy) if is_sharded(policy) else nullcontext():
            yield from merged_weights(policy.pretrained_model)

    def save(self, folder: Path) -> None:
        """See `Weights.save`."""
        base = plain_model(self._policy().pretrained_model)
        state = {name: weight.cpu() for name, weight in self.tensors() if self._processes.is_main}
        self.on_main(lambda: base.save_pretrained(folder, state_dict=state))

    def save_adapter(self, folder: Path) -> None:
        """See `Weights.save_adapter`."""
        policy = self._policy()
        model = policy.pretrained_model
        if not is_peft_model(model):
            raise ValueError("the policy has no adapter; use a sampler that takes all of its weights")
        with gathered(policy) if is_sharded(policy) else nullcontext():
            self.on_main(lambda: model.save_pretrained(str(folder), selected_adapters=[model.active_adapter]))

    def on_main(self, send: Callable[[], None]) -> None:
        """See `Weights.on_main`."""
        self._processes.together(send if self._processes.is_main else _nothing)


def _nothing() -> None:
    """What the other processes do."""
