"""Legacy import path: the code is in `trl_step.data`."""

from trl_step.data.formatting import (
    conversations_formatting_function,
    get_formatting_func_from_dataset,
    instructions_formatting_function,
)
from trl_step.data.packing import ConstantLengthDataset

__all__ = [
    "ConstantLengthDataset",
    "conversations_formatting_function",
    "get_formatting_func_from_dataset",
    "instructions_formatting_function",
]
