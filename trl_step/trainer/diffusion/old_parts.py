"""What a subclass of `DDPOTrainer` for release 0.7 calls in a constructor of its own."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from trl_step.trainer.diffusion.settings import shared_settings


class OldParts:
    """Needs `config`, `accelerator` and `sd_pipeline`, which such a constructor sets."""

    config: Any
    accelerator: Any
    sd_pipeline: Any

    @cached_property
    def _settings(self) -> Any:
        return shared_settings(self.config)

    def _config_check(self) -> tuple[bool, str]:
        """Whether release 0.7's loop can cut an epoch's samples into equal parts; if not, what is the matter."""
        config, processes = self.config, self.accelerator.num_processes
        part, batch = config.train_batch_size, config.sample_batch_size
        update = part * config.train_gradient_accumulation_steps * processes
        drawn = batch * config.sample_num_batches_per_epoch * processes
        if batch % part:
            return False, f"sample_batch_size={batch} is not a multiple of train_batch_size={part}"
        if drawn % update:
            return False, f"the {drawn} samples of an epoch are not a multiple of the {update} of an update"
        return True, ""

    def _save_model_hook(self, models: list[Any], weights: list[Any], output_dir: Any) -> None:
        """For `Accelerator.register_save_state_pre_hook`: the pipeline saves what trains, accelerate does not."""
        self.sd_pipeline.save_checkpoint(models, weights, output_dir)
        weights.pop()

    def _load_model_hook(self, models: list[Any], input_dir: Any) -> None:
        """For `Accelerator.register_load_state_pre_hook`."""
        self.sd_pipeline.load_checkpoint(models, input_dir)
        models.pop()
