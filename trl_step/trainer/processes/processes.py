"""The processes that train together: sums, maxima and errors that all of them share.

Every process calls each of these methods at the same point of a step, whatever its own share of the work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

Result = TypeVar("Result")


class Processes:
    """The processes that `accelerator` connects; a single one exchanges nothing."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.count: int = accelerator.num_processes
        """how many there are"""
        self.index: int = accelerator.process_index
        """the number of this one, from 0"""
        self.is_main: bool = accelerator.is_main_process
        """whether this is the one that writes files and logs"""
        self.device: torch.device = accelerator.device

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` added over all processes, on the device; in a single process the tensor itself."""
        if self.count == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.device), reduction="sum")

    def max(self, number: int) -> int:
        """The largest `number` of all processes."""
        if self.count == 1:
            return number
        return int(self.accelerator.gather(torch.tensor([number], device=self.device)).max())

    def max_of(self, number: float) -> float:
        """The largest `number` of all processes."""
        if self.count == 1:
            return number
        return float(self.accelerator.gather(torch.tensor([number], device=self.device)).max())

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of `tensor` over all processes, each counted once."""
        return self.sum(tensor) / self.count

    def raise_together(self, error: ValueError | None) -> None:
        """Raise on every process if any process found an error, so that none waits for the others forever.

        Raises:
            ValueError: `error`, on the process that found it.
            RuntimeError: another process found one.
        """
        failed = float(self.sum(torch.tensor(float(error is not None), device=self.device)))
        if error is not None:
            raise error
        if failed:
            raise RuntimeError("another process refused its inputs to step; its own output has the message")

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """`work()` of every process, in their order; if one fails, all raise.

        Raises:
            Exception: what `work` raised here.
            RuntimeError: `work` raised on other processes; their messages are named.
        """
        if self.count == 1:
            return [work()]
        error: Exception | None = None
        result: Result | None = None
        try:
            result = work()
        except Exception as found:
            error = found
        everyone = gather_object([(None if error is None else f"{type(error).__name__}: {error}", result)])
        if error is not None:
            raise error
        others = [f"process {rank}: {message}" for rank, (message, _) in enumerate(everyone) if message is not None]
        if others:
            raise RuntimeError("; ".join(others))
        return [result for _, result in everyone]

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()
