"""Saving a run and going on with it: everything that the next step depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType

from trl_step.models.notices import warn_user
from trl_step.models.sharding import is_sharded
from trl_step.trainer.ppo_config import PPOConfig
from trl_step.trainer.processes.processes import Processes
from trl_step.trainer.processes.shards import own_part, spread_state
from trl_step.trainer.runs import folder as state_folder
from trl_step.trainer.runs import random_streams
from trl_step.trainer.runs.codec import cloned, read_tree, write_tree
from trl_step.trainer.runs.data_loader import PositionedLoader
from trl_step.trainer.runs.identity import differences, packages

LATEST = "latest"

SHARED = ("policy", "optimizer", "run", "identity")
"""Trees that all processes have in common, and one of them writes; the others are of each process."""
ENTRIES = ("scheduler", "scaler", "running", "best", "checkup")
"""Parts that are one entry of the tree `run`, under their own names; null if the run has no such part."""
OF_SOME = ("prompt_statistics",)
"""Parts that are one entry of that tree, too, in runs of a trainer that has them."""
SPREAD = ("counters", "kl_controller")
"""Parts whose entries are entries of the tree `run`."""


class Part(Protocol):
    """Anything that a run keeps."""

    def state_dict(self) -> Any:
        """Numbers, texts and tensors, in dictionaries, lists and tuples."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take over what `state_dict` gave."""


class RunState:
    """A run as files, and back. In format 1 these are the trees `policy`, `optimizer`, `run`, `identity` and, of every
    process N, `process-N`; sharded weights are in `policy-N` and `optimizer-N`.

    Args:
        processes: that train together; every one calls `save` and `load`
        parts: gives, as they are at the moment (a script may put another one in place), by name: `policy`, with its
            value head and not wrapped, `optimizer` and `counters`; if the run has them, `kl_controller`; those of
            `ENTRIES` and `OF_SOME`; `loader`, of which the position is kept; `memory`, with `most_samples`. None, or
            left out, is what the run does not have
        identity: gives what must be the same if the state is loaded, see `identity.identity`
        settings: `save_dir` is where "latest" is looked for
        defaults: of all settings that an identity may name, see `identity.default_settings`
    """

    def __init__(
        self,
        processes: Processes,
        parts: Callable[[], Mapping[str, Part | None]],
        identity: Callable[[], dict[str, Any]],
        settings: PPOConfig,
        defaults: Mapping[str, Any],
    ) -> None:
        self.processes, self.identity, self.settings, self._all_parts = processes, identity, settings, parts
        self.defaults = defaults
        policy: Any = self.parts["policy"]
        own = f"-{processes.index}" if is_sharded(policy) else ""
        self._policy, self._optimizer, self._process = f"policy{own}", f"optimizer{own}", f"process-{processes.index}"

    @property
    def parts(self) -> dict[str, Any]:
        """Those that the run has, by name."""
        return {name: part for name, part in self._all_parts().items() if part is not None}

    def check_optimizer(self) -> None:
        """Raise a ValueError if the optimizer is DeepSpeed's, which keeps its state to itself."""
        if self.processes.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                "a run cannot be saved under DeepSpeed, which keeps its optimizer to itself: unset save_every, and "
                "save with trainer.model.save_checkpoint of DeepSpeed, or the policy alone with save_pretrained"
            )

    def save(self, folder: Path) -> None:
        """Write the run as it is now into `folder`; see `PPOTrainer.save_state`."""
        trees = {**self.collect(), "identity": self.identity()}
        own = [name for name in trees if self.processes.is_main or name not in SHARED]

        def write_files(data: Path) -> list[str]:
            return [file for name in own for file in write_tree(data, name, trees[name])]

        state_folder.write(folder, self.processes, write_files)

    def collect(self) -> dict[str, Any]:
        """The run as it is now, as trees. Tensors are the run's own, not copies: write them before the next step.

        Raises:
            ValueError: the optimizer is DeepSpeed's.
        """
        self.check_optimizer()
        parts = self.parts
        return {
            self._policy: own_part(parts["policy"].state_dict()),
            self._optimizer: own_part(parts["optimizer"].state_dict()),
            "run": {
                **{key: value for name in SPREAD if name in parts for key, value in parts[name].state_dict().items()},
                **{name: parts[name].state_dict() if name in parts else None for name in ENTRIES},
                **{name: parts[name].state_dict() for name in OF_SOME if name in parts},
                "packages": packages(),
                "device": self.processes.device.type,
            },
            self._process: {
                "streams": random_streams.capture(),
                "data": self._position(),
                **(parts["memory"].state_dict() if "memory" in parts else {}),
            },
        }

    def load(self, folder: str | Path, may_differ: Sequence[str] = ()) -> int:
        """Go on from the state in `folder`; see `PPOTrainer.load_state`."""
        # one process compares the checksums of all files
        found = self.processes.together(lambda: self._find(folder) if self.processes.is_main else None)
        data = found[0]
        if data is None:
            return 0
        here = self.identity()
        trees: dict[str, Any] = {}
        self.processes.together(lambda: trees.update(self._read(data, here, may_differ)))
        self._take_over(trees)
        self._warn_of_another_machine(trees["run"])
        self.processes.wait()
        return int(trees["run"]["steps_done"])

    def _position(self) -> dict[str, Any] | None:
        loader = self.parts.get("loader")
        # a prepared loader says that it is of the class of what it wraps
        if isinstance(loader, PositionedLoader):
            return loader.state_dict()
        if loader is not None:
            warn_user(
                f"where trainer.dataloader stands is not saved: it is a {type(loader).__name__}, whose position is "
                "not known. After load_state, skip the batches that were seen"
            )
        return None

    def _find(self, folder: str | Path) -> Path | None:
        if str(folder) != LATEST:
            return state_folder.checked(Path(folder))
        if self.settings.save_dir is None:
            raise ValueError('load_state("latest") looks in config.save_dir, which is None: set it, or name a folder')
        return state_folder.newest(Path(self.settings.save_dir))

    def _read(self, data: Path, here: Mapping[str, Any], may_differ: Sequence[str]) -> dict[str, Any]:
        """All trees of this process, of a state that fits; nothing is changed."""
        lines = differences(read_tree(data, "identity"), here, may_differ, self.defaults)
        if lines:
            raise ValueError(
                f"the state in {data.parent} is not one of this run, and nothing was changed:\n  " + "\n  ".join(lines)
            )
        return {name: read_tree(data, name) for name in (self._policy, self._optimizer, "run", self._process)}

    @torch.no_grad()
    def _take_over(self, trees: dict[str, Any]) -> None:
        parts, run, process = self.parts, cloned(trees["run"]), cloned(trees[self._process])
        for name, tensor in parts["policy"].state_dict().items():
            own_part(tensor).copy_(trees[self._policy][name])
        optimizer: Any = parts["optimizer"]
        optimizer.load_state_dict(spread_state(cloned(trees[self._optimizer]), optimizer))
        for name in SPREAD:
            if name in parts:
                parts[name].load_state_dict(run)
        for name in (*ENTRIES, *OF_SOME):
            if name in parts and run[name] is not None:
                parts[name].load_state_dict(run[name])
        if "memory" in parts:
            parts["memory"].load_state_dict(process)
        if process["data"] is not None:
            parts["loader"].load_state_dict(process["data"])
        random_streams.restore(process["streams"])

    def _warn_of_another_machine(self, run: Mapping[str, Any]) -> None:
        """Warn if the state was saved with other packages, or on another kind of device."""
        here = packages()
        other = [f"{name} {was}" for name, was in run["packages"].items() if was != here[name]]
        if other:
            warn_user(
                f"the state was saved with {', '.join(other)}: the last bits of the run's numbers may differ from now "
                "on"
            )
        device = self.processes.device.type
        if run.get("device", device) != device:  # states of older versions do not say
            warn_user(
                f"the state was saved on {run['device']}, and the run goes on on {device}: what is drawn there comes "
                "from another random stream than the saved run would have drawn from"
            )
