"""Saving a run and going on with it: everything that the next step depends on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import DistributedType

from trl_step.models.sharding import is_sharded
from trl_step.trainer.processes.shards import own_part, spread_state
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs import random_streams
from trl_step.trainer.runs.codec import cloned, read_tree, write_tree
from trl_step.trainer.runs.data_loader import PositionedLoader
from trl_step.trainer.runs.identity import differences, identity, packages

if TYPE_CHECKING:
    from trl_step.trainer.ppo_trainer import PPOTrainer

LATEST = "latest"


SHARED = ("policy", "optimizer", "run", "identity")
"""Trees that all processes have in common, and one of them writes; the others are of each process."""


def check_optimizer(trainer: PPOTrainer) -> None:
    """Raise a ValueError where the optimizer is DeepSpeed's, which keeps its state to itself."""
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError(
            "a run cannot be saved under DeepSpeed, which keeps its optimizer to itself: unset save_every, and save "
            "with trainer.model.save_checkpoint of DeepSpeed, or the policy alone with save_pretrained"
        )


def collect(trainer: PPOTrainer) -> dict[str, Any]:
    """The run as it is now, as trees. Tensors are the trainer's own, not copies: write them before the next step."""
    check_optimizer(trainer)
    scaler = trainer.accelerator.scaler
    policy, optimizer = _weights(trainer)
    return {
        policy: own_part(trainer.accelerator.unwrap_model(trainer.model).state_dict()),
        optimizer: own_part(trainer.optimizer.state_dict()),
        "run": {
            "steps_done": trainer.steps_done,
            "current_step": trainer.current_step,
            "scheduler": None if trainer.lr_scheduler is None else trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "kl_coef": trainer.kl_ctl.value,
            "running": trainer.running.state_dict(),
            "best": _best(trainer),
            "checkup": trainer._sampling.checkup.state_dict(),
            "packages": packages(),
            "device": trainer.accelerator.device.type,
        },
        _process(trainer): {
            "streams": random_streams.capture(),
            "data": _position(trainer),
            "most_samples": trainer._forward_size.most_samples,
        },
    }


def save(trainer: PPOTrainer, folder: Path, collected: dict[str, Any] | None = None) -> None:
    """Write the run as it is now, or as it was `collected`, into `folder`; see `PPOTrainer.save_state`."""
    trees = collect(trainer) if collected is None else collected
    trees["identity"] = identity(trainer)
    own = [name for name in trees if trainer.accelerator.is_main_process or name not in SHARED]

    def write_files(data: Path) -> list[str]:
        return [file for name in own for file in write_tree(data, name, trees[name])]

    state_folder.write(folder, trainer.accelerator, write_files)


def load(trainer: PPOTrainer, folder: str | Path, may_differ: Sequence[str]) -> int:
    """Go on from the state in `folder`; see `PPOTrainer.load_state`."""
    accelerator = trainer.accelerator
    # the checksums of all files are compared once, by one process
    found = state_folder.together(accelerator, lambda: _find(trainer, folder) if accelerator.is_main_process else None)
    data = found[0]
    if data is None:
        return 0
    here = identity(trainer)
    trees: dict[str, Any] = {}
    state_folder.together(accelerator, lambda: trees.update(_read(trainer, data, here, may_differ)))
    _apply(trainer, trees)
    accelerator.wait_for_everyone()
    return trainer.steps_done


def _find(trainer: PPOTrainer, folder: str | Path) -> Path | None:
    if str(folder) != LATEST:
        return state_folder.checked(Path(folder))
    save_dir = trainer.config.save_dir
    if save_dir is None:
        raise ValueError('load_state("latest") looks in config.save_dir, which is None: set it, or name a folder')
    return state_folder.newest(Path(save_dir))


def _read(trainer: PPOTrainer, data: Path, here: Mapping[str, Any], may_differ: Sequence[str]) -> dict[str, Any]:
    """All trees of this process, of a state that fits; nothing is changed."""
    lines = differences(read_tree(data, "identity"), here, may_differ)
    if lines:
        raise ValueError(
            f"the state in {data.parent} is not one of this run, and nothing was changed:\n  " + "\n  ".join(lines)
        )
    return {name: read_tree(data, name) for name in (*_weights(trainer), "run", _process(trainer))}


@torch.no_grad()
def _apply(trainer: PPOTrainer, trees: dict[str, Any]) -> None:
    policy, optimizer = _weights(trainer)
    for name, tensor in trainer.accelerator.unwrap_model(trainer.model).state_dict().items():
        own_part(tensor).copy_(trees[policy][name])
    trainer.optimizer.load_state_dict(spread_state(cloned(trees[optimizer]), trainer.optimizer.optimizer))
    run, process = trees["run"], trees[_process(trainer)]
    if trainer.lr_scheduler is not None:
        trainer.lr_scheduler.load_state_dict(run["scheduler"])
    if trainer.accelerator.scaler is not None and run["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(run["scaler"])
    trainer.kl_ctl.value = run["kl_coef"]
    trainer.running.load_state_dict(run["running"])
    if hasattr(trainer, "highest_reward") and run["best"] is not None:
        trainer.highest_reward, trainer.compare_step = run["best"]["reward"].clone(), run["best"]["compare_step"]
    trainer._sampling.checkup.load_state_dict(run["checkup"])
    trainer.steps_done, trainer.current_step = run["steps_done"], run["current_step"]
    trainer._forward_size.most_samples = process["most_samples"]
    if process["data"] is not None:
        trainer.dataloader.load_state_dict(cloned(process["data"]))
    trainer._autosave.forget()
    random_streams.restore(process["streams"])
    other = [f"{name} {was}" for name, was in run["packages"].items() if was != packages()[name]]
    if other:
        warnings.warn(
            f"the state was saved with {', '.join(other)}: the last bits of the run's numbers may differ from now on",
            UserWarning,
            stacklevel=4,
        )
    device = trainer.accelerator.device.type
    if run.get("device", device) != device:  # states of older versions do not tell
        warnings.warn(
            f"the state was saved on {run['device']}, and the run goes on on {device}: what is drawn there comes from "
            "another random stream than the saved run would have drawn from",
            UserWarning,
            stacklevel=4,
        )


def _process(trainer: PPOTrainer) -> str:
    return f"process-{trainer.accelerator.process_index}"


def _weights(trainer: PPOTrainer) -> tuple[str, str]:
    """Names of the trees of policy and optimizer; of sharded ones each process has its own."""
    sharded = is_sharded(trainer.accelerator.unwrap_model(trainer.model))
    rank = f"-{trainer.accelerator.process_index}" if sharded else ""
    return f"policy{rank}", f"optimizer{rank}"


def _best(trainer: PPOTrainer) -> dict[str, Any] | None:
    if not hasattr(trainer, "highest_reward"):
        return None
    return {"reward": trainer.highest_reward, "compare_step": trainer.compare_step}


def _position(trainer: PPOTrainer) -> dict[str, Any] | None:
    loader = trainer.dataloader
    # a prepared loader says that it is of the class of what it wraps
    if isinstance(loader, PositionedLoader):
        return loader.state_dict()
    if loader is not None:
        warnings.warn(
            f"where trainer.dataloader stands is not saved: it is a {type(loader).__name__}, whose position is not "
            "known. Behind load_state, skip the batches that were seen",
            UserWarning,
            stacklevel=5,
        )
    return None
