"""Each trainer's own copy of accelerate's process-wide state.

accelerate keeps precision and gradient accumulation in singletons: whoever is built last sets them for everyone. A
trainer gets copies instead, so that two of them in one process do not change each other, and neither changes an
`Accelerator` of the user's.
"""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    AutocastKwargs,
    DeepSpeedPlugin,
    DistributedType,
    FullyShardedDataParallelPlugin,
    ProjectConfiguration,
)

from trl_step.models.notices import warn_user
from trl_step.private_names import put_in_force

DEFAULT_LOGGING_DIR = "runs"
"""Of tensorboard, whose own default it is."""


class OwnPrecision(Accelerator):
    """An `Accelerator` whose precision is its own; accelerate's asks the process-wide state for it."""

    def prepare_model(self, *args: Any, **kwargs: Any) -> Any:
        """As accelerate's, with the model's `forward` under this accelerator's precision."""
        before = put_in_force(AcceleratorState, vars(self.state))
        try:
            return super().prepare_model(*args, **kwargs)
        finally:
            put_in_force(AcceleratorState, before)

    def autocast(self, autocast_handler: AutocastKwargs | None = None) -> AbstractContextManager[Any]:
        """Inside of it torch computes in `mixed_precision`: float16 for "fp16", bfloat16 for "bf16" and "fp8"."""
        if not self.native_amp:
            return nullcontext()
        handler = autocast_handler or self.autocast_handler
        dtype = torch.float16 if self.mixed_precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, **({} if handler is None else handler.to_kwargs()))


def make_accelerator(
    log_with: list[str], project_kwargs: dict[str, Any], accelerator_kwargs: dict[str, Any]
) -> Accelerator:
    """An `Accelerator` that shares its state with no other.

    Accumulation is the trainer's own business (a dataloader's end must not change it), and a scheduler steps once per
    call whatever the number of processes.
    """
    before = {singleton: put_in_force(singleton, {}) for singleton in (AcceleratorState, GradientState)}
    try:
        options = {"step_scheduler_with_optimizer": False, **accelerator_kwargs}
        options.pop("gradient_accumulation_steps", None)
        if _processes_started() > 1 and not torch.accelerator.is_available():
            options.setdefault("cpu", True)  # else accelerate takes each process for the only one
        project = ProjectConfiguration(**project_kwargs)
        in_folder = [name for name in log_with if name in ("tensorboard", "aim")]
        if in_folder and project.logging_dir is None:
            # today's accelerate refuses these without a folder
            project.logging_dir = DEFAULT_LOGGING_DIR
            warn_user(
                f"log_with={in_folder[0]!r} without project_kwargs: the logs go to the folder {DEFAULT_LOGGING_DIR}/"
            )
        accelerator = OwnPrecision(log_with=log_with or None, project_config=project, **options)
        accelerator.state.__dict__ = dict(accelerator.state.__dict__)
        accelerator.gradient_state.__dict__ = dict(accelerator.gradient_state.__dict__)
        _take_fsdp(accelerator, options.get("fsdp_plugin"))
        _take_deepspeed(accelerator)
    finally:
        for singleton, state in before.items():
            if state:  # what was there stays there; a first trainer leaves its own state, as accelerate does
                put_in_force(singleton, state)
    _check_count(accelerator.num_processes)
    return accelerator


def start_accelerator(config: Any) -> Accelerator:
    """What the settings of a trainer ask for; the run-time fields of `config` are filled in.

    Raises:
        ValueError: `use_habana`, but the device is another one.
    """
    accelerator = make_accelerator(config.trackers, config.project_kwargs, config.accelerator_kwargs)
    if config.use_habana and accelerator.device.type != "hpu":
        raise ValueError(f"use_habana=True, but accelerate chose the device {accelerator.device}, not hpu")
    config.world_size = accelerator.num_processes
    config.global_backward_batch_size = config.backward_batch_size * config.world_size
    config.global_batch_size = config.batch_size * config.world_size
    # differs from v0.7: on two processes it was the steps of one, so a run took twice the samples of `steps`
    config.total_ppo_epochs = math.ceil(config.steps / config.global_batch_size)
    return accelerator


def _take_fsdp(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin | None) -> None:
    """FSDP on a CPU as on accelerators, where accelerate itself falls back to DDP.

    Raises:
        ValueError: a setting of accelerate's that this package does not support.
    """
    state = accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        if plugin is None and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
            return
        state.fsdp_plugin = plugin or FullyShardedDataParallelPlugin()
        state.distributed_type = DistributedType.FSDP
    if state.distributed_type != DistributedType.FSDP:
        return
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2 in the configuration of accelerate")
    if state.fsdp_plugin.cpu_ram_efficient_loading:
        raise ValueError(
            "fsdp_cpu_ram_efficient_loading: true leaves the weights of all processes but the first one empty when a "
            "script loads its model; set it to false in the configuration of accelerate"
        )


def _take_deepspeed(accelerator: Accelerator) -> None:
    """DeepSpeed on a CPU as on accelerators, where accelerate itself falls back to DDP."""
    state = accelerator.state
    wanted = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    if wanted and state.distributed_type == DistributedType.MULTI_CPU:
        plugin = DeepSpeedPlugin()
        plugin.set_mixed_precision(accelerator.mixed_precision)
        plugin.select(_from_accelerator_state=True)
        state.deepspeed_plugins = plugin
        state.distributed_type = DistributedType.DEEPSPEED


def _processes_started() -> int:
    """How many processes a launcher such as torchrun says there are; 1 where there is no launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def _check_count(num_processes: int) -> None:
    """Compare the number of processes with what was asked for.

    Raises:
        ValueError: there are several, but accelerate takes this one for the only one.
    """
    if num_processes > 1:
        return
    if _processes_started() > 1:
        raise ValueError(
            f"this process is one of several, WORLD_SIZE={_processes_started()}, but accelerate takes it for the only "
            'one: each would train by itself. To train on the CPU give accelerator_kwargs={"cpu": True}, and make no '
            "Accelerator with other settings before the trainer"
        )
    # set by `accelerate launch --cpu --num_processes 2`, which starts several processes through mpirun alone
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        warn_user(
            "accelerate launch was asked for several processes, but started one: with --cpu it needs MPI. Start them "
            "with accelerate launch --multi_gpu --num_processes, which works on a CPU as well, or with "
            "torchrun --nproc_per_node"
        )


def own_accumulation(accelerator: Accelerator, steps: int) -> None:
    """Let this accelerator, and no other one of the process, accumulate over `steps` batches."""
    state = accelerator.gradient_state
    state.__dict__ = {**state.__dict__, "plugin_kwargs": {**state.plugin_kwargs, "num_steps": steps}}
    state.dataloader_references = [None]  # the end of a loop elsewhere in the process is no end of an accumulation


def detach(accelerator: Accelerator, *prepared: Any) -> None:
    """Point objects that `accelerator.prepare` returned at the trainer's own gradient state."""
    for item in prepared:
        if hasattr(item, "gradient_state"):
            item.gradient_state = accelerator.gradient_state
