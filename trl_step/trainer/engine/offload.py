"""A reference whose weights are kept in host memory, and on the device only while it is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def needs_no_copy(device: torch.device) -> bool:
    """Whether the device computes on host memory anyway."""
    return device.type == "cpu"


def to_host(weight: torch.Tensor) -> torch.Tensor:
    """A copy in host memory, page-locked if there is a GPU, which can then copy it at full speed."""
    host = weight.detach().cpu()
    return host.pin_memory() if torch.cuda.is_available() else host


def to_device(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on the device; the host does not wait for it."""
    return host.to(device, non_blocking=True)


class OffloadedWeights:
    """The weights of a reference, which never change: they are copied to the device and dropped there.

    Args:
        reference: its buffers, which are small, stay on the device; its parameters leave it
        policy: what the reference shares with it stays where it is
        device: where both are asked
    """

    def __init__(self, reference: torch.nn.Module, policy: torch.nn.Module, device: torch.device) -> None:
        of_policy = {id(parameter) for parameter in policy.parameters()}
        self._device = device
        self._host = {p: to_host(p) for p in reference.parameters() if id(p) not in of_policy}
        self._inside = 0
        for module in reference.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self._rest()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Inside, the weights are on the device; may be entered inside itself."""
        if self._inside == 0:
            for parameter, host in self._host.items():
                parameter.data = to_device(host, self._device)
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._rest()

    def _rest(self) -> None:
        for parameter, host in self._host.items():
            parameter.data = host
