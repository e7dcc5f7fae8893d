"""Every file of examples/accelerate_configs is one that `accelerate launch` takes, and says what its name says."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate_configs"
KINDS = {
    "single": ("multi_gpu use_fsdp use_deepspeed", {}),
    "ddp": ("use_fsdp use_deepspeed", {"multi_gpu": True}),
    "fsdp2": (
        "multi_gpu use_deepspeed fsdp_cpu_ram_efficient_loading",
        {"use_fsdp": True, "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"},
    ),
    "zero2": ("multi_gpu use_fsdp", {"use_deepspeed": True, "zero_stage": 2}),
    "zero3": ("multi_gpu use_fsdp zero3_init_flag", {"use_deepspeed": True, "zero_stage": 3}),
}


def test_every_file_is_known() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_launch_takes_it(name: str) -> None:
    words = ["--config_file", str(FOLDER / f"{name}.yaml"), "train.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
    switched_off, expected = KINDS[name]
    for key, value in expected.items():
        assert getattr(arguments, key) == value, key
    for key in switched_off.split():
        assert not getattr(arguments, key), key
    assert arguments.mixed_precision == "bf16"
    assert arguments.num_processes == (1 if name == "single" else 2)
