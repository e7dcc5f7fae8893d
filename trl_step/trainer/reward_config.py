"""`RewardConfig`: the settings of a `RewardTrainer`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from trl_step.trainer.text.training_arguments import TrainingArguments


@dataclass(init=False)
class RewardConfig(TrainingArguments):
    """`TrainingArguments` (old names work too), `max_length` and `dataset_num_proc`.

    Args:
        output_dir: folder of the checkpoints.
        max_length: maximum tokens of a text; None: 512.
        dataset_num_proc: processes for preparing a data set; None: this one.
        exact_v07: subtract each margin from every pair's difference, as release 0.7.11 does.
        arguments: the other arguments of `transformers.TrainingArguments`, of release 4 or 5.
    """

    max_length: Optional[int] = field(default=None, metadata={"help": "Maximum tokens of a text; 512 if not given."})

    dataset_num_proc: Optional[int] = field(default=None, metadata={"help": "Processes for preparing a data set."})

    exact_v07: bool = field(default=False, metadata={"help": "Margins as in 0.7.11: each applies to every pair."})

    def __init__(
        self,
        output_dir: Optional[str] = None,
        max_length: Optional[int] = None,
        exact_v07: bool = False,
        dataset_num_proc: Optional[int] = None,
        **arguments: Any,
    ) -> None:
        self.max_length = max_length
        self.exact_v07 = exact_v07
        self.dataset_num_proc = dataset_num_proc
        super().__init__(output_dir=output_dir, **arguments)
