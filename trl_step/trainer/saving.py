"""What `PPOTrainer` writes: its policy, to a folder or a hub, and the states that a run goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

from trl_step.models.sharding import is_sharded, whole_state_dict
from trl_step.trainer.reports import hub


class SavingMixin:
    """Methods of `PPOTrainer` that save and load; the attributes are those of `PPOTrainer`."""

    def create_model_card(self, path: str, model_name: Optional[str] = "TRL Model") -> None:
        """Write README.md into `path`: what the model is and how to load it. Needs no network."""
        hub.write_model_card(path, model_name or "TRL Model", self.config)

    def _save_pretrained(self, save_directory: str) -> None:
        policy, state = self.accelerator.unwrap_model(self.model), None
        if is_sharded(policy):
            state = whole_state_dict(policy, keep=self.accelerator.is_main_process)
        if not self.accelerator.is_main_process:
            return
        policy.save_pretrained(save_directory, state_dict=state)
        self.tokenizer.save_pretrained(save_directory)
        self.create_model_card(save_directory)

    def save_pretrained(self, save_directory: str, **push_kwargs: Any) -> None:
        """Save policy, value head, tokenizer and model card; `push_to_hub=True` and `repo_id` push them as well."""
        hub.save(self, save_directory, **push_kwargs)

    def save_state(self, folder: Union[str, Path]) -> None:
        """Write all that the next step depends on into `folder`, for `load_state`; every process calls it.

        Policy and value head (of a PEFT model all but the frozen base weights), optimizer, scheduler, KL coefficient,
        running score moments, random streams, counters, the place in `trainer.dataloader`, and the best score so far.
        The reference is not in it. Files are safetensors and JSON, and a state that is already in `folder` stays
        until the new one is complete on the disk.

        Raises:
            TypeError: the optimizer or scheduler keeps something that these formats do not hold.
            OSError: the files could not be written; `folder` is as it was.
        """
        self._run_state.save(Path(folder))

    def load_state(self, folder: Union[str, Path], *, may_differ: Sequence[str] = ()) -> int:
        """Go on, bit for bit on a CPU, from what `save_state` wrote; every process calls it.

        Build the trainer as it was built for the run that was saved, then call this before the loop. The next
        pass over `trainer.dataloader` is the rest of the one that had begun.

        Args:
            folder: of the state; "latest" takes the newest complete state in `config.save_dir`, and does nothing if
                there is none yet
            may_differ: names of settings that were changed on purpose, such as ("cliprange",); what is in force is
                `config`, but for the learning rate: that is the optimizer's and comes with the state

        Returns:
            the steps that the run has made, 0 if there was no state

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: the state is incomplete or damaged, or it is of a run of another model, optimizer, data set,
                configuration or number of processes. All differences are named, and nothing was changed.
        """
        steps = self._run_state.load(folder, may_differ)
        self._autosave.forget()
        return steps

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload what `save_pretrained` writes; the address of the commit. `kwargs`: see `hub.push`."""
        return hub.push(self, repo_id, **kwargs)
