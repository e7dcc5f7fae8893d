"""The parameters of a network that train, as a part of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TrainedPart(nn.Module):
    """A module whose state is that of the parameters that train: frozen weights are in no checkpoint."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:  # type: ignore[override]
        """Name -> parameter, not a copy."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}
