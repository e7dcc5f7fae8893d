"""`PPOConfig` of TRL 0.12 to 1.9."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Optional

from trl_step.trainer.ppov2_config import PPOv2Config


@dataclass(init=False)
class PPOConfig(PPOv2Config):
    """Settings of PPO with `train()`, with the sizes of TRL 0.26: a batch has `per_device_train_batch_size *
    gradient_accumulation_steps` answers on each process, and `num_mini_batches` updates are made of it.

    Args:
        output_dir: folder of the checkpoints
        arguments: the fields of `PPOv2Config` and `OnPolicyConfig`, and the other arguments of
            `transformers.TrainingArguments`

    Raises:
        ValueError: a value is out of range; the message names the field, the value and what is allowed.
    """

    def __init__(self, output_dir: Optional[str] = None, **arguments: Any) -> None:
        super().__init__(output_dir, **arguments)

    def check(self) -> None:
        """Raise a ValueError for a value that is out of range."""
        super().check()
        if self.exact and self.num_mini_batches > 1 and self.gradient_accumulation_steps > 1:
            raise ValueError(
                f"exact=True with num_mini_batches={self.num_mini_batches} and gradient_accumulation_steps="
                f"{self.gradient_accumulation_steps}: the release makes one update of all mini-batches then; set "
                "num_mini_batches=1"
            )

    def take_sizes(self, processes: int) -> None:
        """Fill in the run-time fields; `processes` is their number."""
        super().take_sizes(processes)
        self.local_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        # differs from the release: the gradient was accumulated over mini-batches
        self.local_mini_batch_size = math.ceil(self.local_batch_size / self.num_mini_batches)
        self.batch_size = self.local_batch_size * processes
        self.mini_batch_size = self.local_mini_batch_size * processes
