"""`DDPOConfig`: the settings of policy gradients on a diffusion model."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

from trl_step.core import flatten_dict
from trl_step.import_utils import TrackerName, is_bitsandbytes_available, is_torchvision_available
from trl_step.models.notices import warn_user

_WHOLE_NUMBERS = (
    "num_epochs",
    "save_freq",
    "num_checkpoint_limit",
    "sample_num_steps",
    "sample_batch_size",
    "sample_num_batches_per_epoch",
    "train_batch_size",
    "train_gradient_accumulation_steps",
    "train_num_inner_epochs",
    "per_prompt_stat_tracking_buffer_size",
    "per_prompt_stat_tracking_min_count",
    "max_workers",
)
"""Settings that are at least 1."""
_POSITIVE = ("train_max_grad_norm", "train_adv_clip_max", "train_clip_range")
_SHARES = ("sample_eta", "train_timestep_fraction")
"""Settings above 0, and at most 1."""
_WITHOUT_IMAGES = ("trackio", "mlflow", "comet_ml", "dvclive")
_PRECISIONS = ("no", "fp16", "bf16")


@dataclass
class DDPOConfig:
    """Settings of denoising diffusion policy optimization (Black et al. 2023, arXiv:2305.13301).

    Raises:
        ValueError: a value is out of range; the message names the field and what is allowed.
        ImportError: 8-bit Adam is requested and bitsandbytes is missing.
    """

    exp_name: str = field(default_factory=lambda: os.path.splitext(os.path.basename(sys.argv[0]))[0])
    """Name of the experiment; the script's name by default"""
    run_name: Optional[str] = ""
    """Name of the run, for scripts"""
    seed: int = 0
    """Seed of all random streams; process N of several takes `seed + N`"""
    log_with: Optional[TrackerName] = None
    """Tracker; wandb, tensorboard, aim, swanlab and clearml have `log_images`, for the hook"""
    tracker_kwargs: dict = field(default_factory=dict)
    """For the tracker"""
    accelerator_kwargs: dict = field(default_factory=dict)
    """For `accelerate.Accelerator`"""
    project_kwargs: dict = field(default_factory=dict)
    """For `accelerate.utils.ProjectConfiguration`"""
    tracker_project_name: str = "trl"
    """Project in the tracker"""
    logdir: str = "logs"
    """Checkpoints are in its folder `checkpoints`, unless `project_kwargs` names a `project_dir`"""
    num_epochs: int = 100
    """Rounds of sampling and training"""
    save_freq: int = 1
    """Epochs between checkpoints"""
    num_checkpoint_limit: int = 5
    """Checkpoints kept, the newest ones"""
    mixed_precision: Optional[str] = "fp16"
    """Of accelerate: fp16, which needs a GPU, bf16 or no; None: what `accelerate launch` says, or no"""
    allow_tf32: bool = True
    """Let Ampere and later GPUs multiply in TF32"""
    resume_from: Optional[str] = ""
    """Checkpoint to resume from, or a folder of them, of which it is the newest"""
    sample_num_steps: int = 50
    """Denoising steps of a sample"""
    sample_eta: float = 1.0
    """Noise of the DDIM sampler, above 0 and at most 1; without noise there is nothing to learn from"""
    sample_guidance_scale: float = 5.0
    """Weight of classifier-free guidance"""
    sample_batch_size: int = 1
    """Samples per sampling batch and process"""
    sample_num_batches_per_epoch: int = 2
    """Batches of samples per epoch"""
    train_batch_size: int = 1
    """Samples per forward pass in training, per process; the last batch may be smaller"""
    train_use_8bit_adam: bool = False
    """Adam of bitsandbytes"""
    train_learning_rate: float = 3e-4
    """Learning rate of Adam"""
    train_adam_beta1: float = 0.9
    """Adam: decay of the first moment"""
    train_adam_beta2: float = 0.999
    """Adam: decay of the second moment"""
    train_adam_weight_decay: float = 1e-4
    """Adam: decay of the weights"""
    train_adam_epsilon: float = 1e-8
    """Adam: added to the denominator"""
    train_gradient_accumulation_steps: int = 1
    """Batches per optimizer step"""
    train_max_grad_norm: float = 1.0
    """Gradients are clipped to this norm"""
    train_num_inner_epochs: int = 1
    """Passes over the samples of an epoch"""
    train_cfg: bool = True
    """Classifier-free guidance in training too; without it samples should have `sample_guidance_scale=1`"""
    train_adv_clip_max: float = 5
    """Advantages are clipped to plus and minus this"""
    train_clip_range: float = 1e-4
    """Clip range of the ratio"""
    train_timestep_fraction: float = 1.0
    """Fraction of the denoising steps that is trained, drawn anew for each sample"""
    per_prompt_stat_tracking: bool = False
    """Compute advantages relative to the rewards of the same prompt"""
    per_prompt_stat_tracking_buffer_size: int = 16
    """Rewards remembered per prompt"""
    per_prompt_stat_tracking_min_count: int = 16
    """With fewer rewards, a prompt is compared with all prompts"""
    async_reward_computation: bool = False
    """Compute the rewards of several sampling batches at once, in threads"""
    max_workers: int = 2
    """Number of such threads"""
    negative_prompts: Optional[str] = ""
    """What samples should not look like, as one text"""

    def __post_init__(self) -> None:
        if self.mixed_precision is None:
            self.mixed_precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self._check_values()
        if self.log_with is None:
            warn_user("without log_with='wandb' or 'tensorboard' no images are logged")
        if self.log_with in _WITHOUT_IMAGES:
            warn_user(
                f"log_with={self.log_with!r} logs numbers: accelerate has no log_images for it, for the hook to call"
            )
        if self.log_with == "wandb" and not is_torchvision_available():
            warn_user("wandb logs images only with the package torchvision: pip install torchvision")
        if self.train_use_8bit_adam and not is_bitsandbytes_available():
            raise ImportError("train_use_8bit_adam=True needs bitsandbytes and a CUDA device: pip install bitsandbytes")

    def _check_values(self) -> None:
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} must be a whole number, 1 or more")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0")
        for name in _SHARES:
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be above 0 and at most 1")
        if self.mixed_precision not in _PRECISIONS:
            raise ValueError(f"mixed_precision={self.mixed_precision!r} must be one of {', '.join(_PRECISIONS)}")
        if not isinstance(self.negative_prompts, (str, type(None))):
            raise ValueError(f"negative_prompts={self.negative_prompts!r} must be one text")
        if self.trained_steps < 1:
            raise ValueError(
                f"train_timestep_fraction={self.train_timestep_fraction:g} of sample_num_steps={self.sample_num_steps} "
                "is less than one step: nothing would be trained"
            )
        buffer, least = self.per_prompt_stat_tracking_buffer_size, self.per_prompt_stat_tracking_min_count
        if self.per_prompt_stat_tracking and least > buffer:
            raise ValueError(
                f"per_prompt_stat_tracking_min_count={least} is more than per_prompt_stat_tracking_buffer_size="
                f"{buffer}: no prompt would ever have statistics of its own"
            )

    @property
    def trained_steps(self) -> int:
        """Denoising steps of a sample that are trained."""
        return int(self.sample_num_steps * self.train_timestep_fraction)

    def to_dict(self) -> dict[str, Any]:
        """All settings, one level deep, with `/` between the levels."""
        return flatten_dict(asdict(self))
